"""Algorithms with which routers choose experts.

Nothing needs the gradients of these algorithms: they choose experts, and the
router computes the weights.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.types import Array

# Number of phases of an auction. The bidding step of each phase is a quarter of
# the step of the phase before.
NUM_PHASES = 5
# Largest number of rounds of a phase. After the last phase, tokens without a
# place get free places.
MAX_ROUNDS = 1000


def within_groups(
  scores_GME: Array,
  num_groups: int,
  top_groups: int,
  num_choices: int = 1,
  num_best: int = 2,
) -> Array:
  """Sets the scores of experts outside of a token's best groups to -inf.

  If each group of experts is on one node, a token is sent to few nodes. The
  score of a group is the sum of its best scores: of two in DeepSeek-V3 (2024,
  section 2.1.2, https://arxiv.org/abs/2412.19437), of one in DeepSeek-V2 (2024,
  section 2.2.2, https://arxiv.org/abs/2405.04434).

  Args:
    scores_GME: scores by which experts are chosen.
    num_groups: number of groups; each has E / num_groups neighbouring experts.
    top_groups: number of groups that a token may use.
    num_choices: number of experts that a token chooses.
    num_best: number of scores that are summed for a group.

  Raises:
    ValueError: if experts do not divide into groups of at least `num_best`, if
      there are fewer than `top_groups` groups, or if the groups of a token have
      fewer experts than it chooses.
  """
  *lead, E = scores_GME.shape
  if E % num_groups or E // num_groups < num_best or top_groups > num_groups:
    raise ValueError(
      f'num_groups={num_groups} must divide NUM_EXPERTS={E} into groups of at'
      f' least {num_best}, and top_groups={top_groups} must be at most'
      ' num_groups: change one of them.'
    )
  if top_groups * (E // num_groups) < num_choices:
    raise ValueError(
      f'top_groups={top_groups} of num_groups={num_groups} hold fewer of the'
      f' {E} experts than the {num_choices} choices of a token: raise'
      ' top_groups.'
    )
  scores = scores_GME.reshape(*lead, num_groups, E // num_groups)
  group_scores = jax.lax.top_k(scores, num_best)[0].sum(axis=-1)
  _, best = jax.lax.top_k(group_scores, top_groups)
  groups = jnp.arange(num_groups, dtype=best.dtype)
  is_open = jnp.any(best[..., None] == groups, axis=-2)
  scores = jnp.where(is_open[..., None], scores, -jnp.inf)
  return scores.reshape(scores_GME.shape)


def quantiles(
  scores_GME: Array, bias_E: Array, num_active: int, valid_GM: Array
) -> Array:
  """Prices at which each expert would get an even share of a group's tokens.

  This is one step of coordinate descent on the dual of balanced assignment.
  With the current bias, a token's threshold is its (k + 1)-th largest biased
  score. An expert's excess is its score minus the token's threshold. Among the
  group's n valid tokens, the expert's price is its (floor(n k / E) + 1)-th
  largest excess, so that about n k / E tokens exceed the price.

  Args:
    scores_GME: scores without bias.
    bias_E: current bias.
    num_active: k, less than E.
    valid_GM: bool, False for padding.

  Returns:
    [G, E] prices. If a new price is not finite, as for a masked expert, the
    result is the current price, -bias_E.
  """
  M, E = scores_GME.shape[1:]
  scores_GME = jax.lax.stop_gradient(scores_GME)
  best_GMA = jax.lax.top_k(scores_GME + bias_E, num_active + 1)[0]
  excess_GME = jnp.where(
    valid_GM[..., None], scores_GME - best_GMA[..., -1:], -jnp.inf
  )
  falling_GME = -jnp.sort(-excess_GME, axis=1)
  tokens_G = valid_GM.sum(axis=1, dtype=jnp.int32)
  place_G = jnp.minimum(tokens_G * num_active // E, M - 1)
  price_GE = jnp.take_along_axis(falling_GME, place_G[:, None, None], axis=1)
  price_GE = price_GE[:, 0]
  return jnp.where(jnp.isfinite(price_GE), price_GE, -bias_E)


def sinkhorn(logits_GME: Array, valid_GM: Array, num_iterations: int) -> Array:
  """Shifts logits by token and by expert, to balance a soft assignment.

  Sinkhorn's iteration repeats two steps: it scales the exponentials of each
  token to the sum 1, and then the exponentials of each expert to the sum n / E,
  where n is the number of valid tokens of the group. The computation uses
  logarithms.

  Returns:
    [G, M, E] logarithms; -inf for padding.
  """
  E = logits_GME.shape[-1]
  tokens_G11 = valid_GM.sum(axis=1, dtype=jnp.float32)[:, None, None]
  log_share_G11 = jnp.log(jnp.maximum(tokens_G11, 1.0) / E)
  log_GME = jnp.where(valid_GM[..., None], logits_GME, -jnp.inf)

  def log_sum(a_GME, axis):
    total = jax.nn.logsumexp(a_GME, axis=axis, keepdims=True)
    return jnp.where(jnp.isfinite(total), total, 0.0)

  def scale(_, a_GME):
    a_GME = a_GME - log_sum(a_GME, 2)
    return a_GME - log_sum(a_GME, 1) + log_share_G11

  log_GME = jax.lax.stop_gradient(log_GME)
  return jax.lax.fori_loop(0, num_iterations, scale, log_GME)


class _Auction(NamedTuple):
  """State of an auction.

  Attributes:
    price_E: current price of each expert.
    expert_M: expert at which each token holds a place, -1 for none.
    bid_M: bid with which the token got this place.
    round: number of finished rounds of this phase.
  """

  price_E: Array
  expert_M: Array
  bid_M: Array
  round: Array


def balanced_assignment(benefit_GME: Array, valid_GM: Array) -> Array:
  """Assigns one expert to each token, and <= ceil(n / E) tokens to an expert.

  BASE layers use this assignment (Lewis et al., 2021, section 3,
  https://arxiv.org/abs/2103.16716). n is the number of valid tokens. The
  algorithm is an auction (Bertsekas, 1988). The value of an expert for a token
  is the benefit minus the expert's price. In each round every token without a
  place bids for its most valuable expert. The bid is the expert's price, plus
  the lead over the second most valuable expert, plus a step. An expert keeps
  the highest bids. Each phase has a smaller step, and starts with the prices of
  the phase before. The sum of benefits is smaller than the optimum by at most E
  ceil(n / E) times the last step, unless `MAX_ROUNDS` is too small. The last
  step is 1/1024 of the range of the group's finite benefits.

  Args:
    benefit_GME: float32; -inf counts as the smallest finite benefit of the
      group minus the range of its finite benefits.
    valid_GM: bool; padding takes no place.

  Returns:
    int32 experts [G, M]; 0 for padding.
  """
  if benefit_GME.shape[-1] == 1:
    return jnp.zeros(valid_GM.shape, jnp.int32)
  benefit_GME = jax.lax.stop_gradient(benefit_GME)
  return jax.vmap(_balanced)(benefit_GME, valid_GM)


def _balanced(benefit_ME: Array, valid_M: Array) -> Array:
  M, E = benefit_ME.shape
  counted_ME = valid_M[:, None] & jnp.isfinite(benefit_ME)
  low = jnp.min(jnp.where(counted_ME, benefit_ME, jnp.inf))
  high = jnp.max(jnp.where(counted_ME, benefit_ME, -jnp.inf))
  spread = jnp.where(high > low, high - low, 1.0)
  benefit_ME = jnp.where(counted_ME, benefit_ME, low - spread)
  tokens = valid_M.sum(dtype=jnp.int32)
  places = (tokens + E - 1) // E
  # If E does not divide the number of tokens, some places stay free. Idle
  # bidders take these places; for an idle bidder all experts have the same
  # benefit. Without idle bidders the price of an expert with a free place would
  # have to start from 0 in each phase.
  benefit_ME = jnp.pad(benefit_ME, ((0, E), (0, 0)))
  idle_E = jnp.arange(E, dtype=jnp.int32) < places * E - tokens
  bids_M = jnp.concatenate([valid_M, idle_E])

  def is_open(auction):
    waits = jnp.any(bids_M & (auction.expert_M < 0))
    return waits & (auction.round < MAX_ROUNDS)

  def phase(i, auction):
    step = spread * jnp.float32(4.0) ** -(i + 1).astype(jnp.float32)
    start = _Auction(
      auction.price_E,
      jnp.full(M + E, -1, jnp.int32),
      jnp.zeros(M + E, jnp.float32),
      jnp.zeros((), jnp.int32),
    )
    bid = functools.partial(_bid, benefit_ME, bids_M, places, step)
    return jax.lax.while_loop(is_open, bid, start)

  empty = _Auction(
    jnp.zeros(E, jnp.float32),
    jnp.full(M + E, -1, jnp.int32),
    jnp.zeros(M + E, jnp.float32),
    jnp.zeros((), jnp.int32),
  )
  auction = jax.lax.fori_loop(0, NUM_PHASES, phase, empty)
  return _fill(auction.expert_M[:M], valid_M, places, E)


def _bid(
  benefit_ME: Array,
  bids_M: Array,
  places: Array,
  step: Array,
  auction: _Auction,
) -> _Auction:
  """Runs a round: bidders without a place bid; experts keep the best bids."""
  M, E = benefit_ME.shape
  value_ME = benefit_ME - auction.price_E
  best_M = jnp.argmax(value_ME, axis=1).astype(jnp.int32)
  value_M = value_ME.max(axis=1)
  experts_E = jnp.arange(E, dtype=jnp.int32)
  others_ME = jnp.where(best_M[:, None] == experts_E, -jnp.inf, value_ME)
  offer_M = auction.price_E[best_M] + value_M - others_ME.max(axis=1) + step
  holds_M = auction.expert_M >= 0
  wanted_M = jnp.where(holds_M, auction.expert_M, best_M)
  wanted_M = jnp.where(bids_M, wanted_M, E)
  bid_M = jnp.where(holds_M, auction.bid_M, offer_M)
  tokens_M = jnp.arange(M, dtype=jnp.int32)
  # Bids are sorted by expert, then by falling bid, then by token.
  sorted_M, falling_M, order_M = jax.lax.sort(
    (wanted_M, -bid_M, tokens_M), num_keys=3
  )
  bounds_E = jnp.searchsorted(sorted_M, jnp.arange(E + 1, dtype=jnp.int32))
  bounds_E = bounds_E.astype(jnp.int32)
  kept_M = (tokens_M - bounds_E[sorted_M] < places) & (sorted_M < E)
  expert_M = jnp.zeros(M, jnp.int32)
  expert_M = expert_M.at[order_M].set(jnp.where(kept_M, sorted_M, -1))
  lowest_E = -falling_M[jnp.clip(bounds_E[:E] + places - 1, 0, M - 1)]
  is_full_E = jnp.diff(bounds_E) >= places
  price_E = jnp.where(is_full_E, lowest_E, auction.price_E)
  return _Auction(price_E, expert_M, bid_M, auction.round + 1)


def _fill(
  expert_M: Array, valid_M: Array, places: Array, num_experts: int
) -> Array:
  """Returns `expert_M`; tokens without an expert get one with a free place.

  Tokens and experts are taken in order. `places` is the number of places of
  each expert. Padding gets expert 0.
  """
  experts_E = jnp.arange(num_experts, dtype=jnp.int32)
  held_E = jnp.sum(expert_M[:, None] == experts_E, axis=0, dtype=jnp.int32)
  waits_M = valid_M & (expert_M < 0)
  rank_M = jnp.cumsum(waits_M, dtype=jnp.int32) - 1
  ends_E = jnp.cumsum(places - held_E, dtype=jnp.int32)
  free_M = jnp.searchsorted(ends_E, rank_M, side='right').astype(jnp.int32)
  filled_M = jnp.where(waits_M, free_M, expert_M)
  return jnp.where(valid_M, filled_M, 0)
