"""Algorithms that assign tokens to experts with a whole group in view.

None of them carries a gradient: they choose, and weights are taken elsewhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.types import Array

# An auction is held so many times, each time in steps of a quarter.
NUM_PHASES = 5
# Rounds of a phase after which whoever is left takes what is free.
MAX_ROUNDS = 1000


def within_groups(scores_GME: Array, num_groups: int, top_groups: int) -> Array:
  """Scores, -inf outside each token's best groups of neighbouring experts.

  DeepSeek-V3 (2024), section 2.1.2, https://arxiv.org/abs/2412.19437: a group
  counts as much as its two best experts together, so that a token visits few
  nodes.

  Args:
    scores_GME: by which experts are chosen.
    num_groups: groups of E / num_groups experts each.
    top_groups: groups that a token may use.

  Raises:
    ValueError: if experts do not divide into groups of at least two.
  """
  *lead, E = scores_GME.shape
  if E % num_groups or E // num_groups < 2 or top_groups > num_groups:
    raise ValueError(
      f'num_groups={num_groups} must divide NUM_EXPERTS={E} into groups of at'
      f' least 2, and top_groups={top_groups} be no more than that: change one'
      ' of them.'
    )
  scores = scores_GME.reshape(*lead, num_groups, E // num_groups)
  group_scores = jax.lax.top_k(scores, 2)[0].sum(axis=-1)
  _, best = jax.lax.top_k(group_scores, top_groups)
  groups = jnp.arange(num_groups, dtype=best.dtype)
  is_open = jnp.any(best[..., None] == groups, axis=-2)
  scores = jnp.where(is_open[..., None], scores, -jnp.inf)
  return scores.reshape(scores_GME.shape)


def quantiles(
  scores_GME: Array, bias_E: Array, num_active: int, valid_GM: Array
) -> Array:
  """The price at which each expert would have had its share of a group.

  One step of coordinate descent on the dual of balanced assignment: with the
  present bias, a token's threshold is its (k + 1)-th largest biased score; an
  expert's price is the (floor(n k / E) + 1)-th largest excess of its scores
  over the thresholds of the group's n valid tokens, so that n k / E of them
  exceed it.

  Args:
    scores_GME: without bias.
    bias_E: the present one.
    num_active: k, less than E.
    valid_GM: bool, False for padding.

  Returns:
    [G, E]; where a price is not finite (experts that are masked), the present
    one, -bias_E.
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
  """Logits shifted by token and expert towards a balanced soft assignment.

  Sinkhorn's iteration in logarithms: in turn, the exponentials of each token
  are scaled to sum to 1 and those of each expert to sum to n / E, with n the
  valid tokens of the group.

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
  """Bids so far.

  Attributes:
    price_E: what a place with each expert costs.
    expert_M: the expert each token holds a place with, -1 for none.
    bid_M: what the token bid for it.
    round: rounds of this phase so far.
  """

  price_E: Array
  expert_M: Array
  bid_M: Array
  round: Array


def balanced_assignment(benefit_GME: Array, valid_GM: Array) -> Array:
  """One expert per token, ceil(n / E) tokens per expert at most.

  The assignment of BASE layers (Lewis et al., 2021, section 3,
  https://arxiv.org/abs/2103.16716), by an auction (Bertsekas, 1988): in each
  round all tokens without a place bid for the expert that is worth most to them
  at its price: its price, what it is worth more than their second best, and a
  step on top; an expert keeps its highest bids. Prices start from those of an
  auction in larger steps. The sum of benefits comes within n times the last
  step, 1/1024 of the group's spread of benefits, of the largest possible one,
  unless `MAX_ROUNDS` are not enough.

  Args:
    benefit_GME: float32; -inf is taken for much less than the smallest.
    valid_GM: bool; padding takes no place.

  Returns:
    int32 [G, M]; 0 for padding.
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
  # Bidders to whom all is the same make up for the n that is no multiple of E:
  # prices of places that stay free would otherwise have to start from 0.
  benefit_NE = jnp.pad(benefit_ME, ((0, E), (0, 0)))
  idle_E = jnp.arange(E, dtype=jnp.int32) < places * E - tokens
  bids_N = jnp.concatenate([valid_M, idle_E])

  def is_open(auction):
    waits = jnp.any(bids_N & (auction.expert_M < 0))
    return waits & (auction.round < MAX_ROUNDS)

  def phase(i, auction):
    step = spread * jnp.float32(4.0) ** -(i + 1).astype(jnp.float32)
    start = _Auction(
      auction.price_E,
      jnp.full(M + E, -1, jnp.int32),
      jnp.zeros(M + E, jnp.float32),
      jnp.zeros((), jnp.int32),
    )
    bid = functools.partial(_bid, benefit_NE, bids_N, places, step)
    return jax.lax.while_loop(is_open, bid, start)

  nobody = _Auction(
    jnp.zeros(E, jnp.float32),
    jnp.full(M + E, -1, jnp.int32),
    jnp.zeros(M + E, jnp.float32),
    jnp.zeros((), jnp.int32),
  )
  auction = jax.lax.fori_loop(0, NUM_PHASES, phase, nobody)
  return _fill(auction.expert_M[:M], valid_M, places, E)


def _bid(
  benefit_ME: Array,
  bids_M: Array,
  places: Array,
  step: Array,
  auction: _Auction,
) -> _Auction:
  """One round: everyone without a place bids, and experts keep the best."""
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
  # By expert, then by falling bid; of equal bids the earlier token's.
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
  """Gives tokens without a place the free ones, in order."""
  experts_E = jnp.arange(num_experts, dtype=jnp.int32)
  held_E = jnp.sum(expert_M[:, None] == experts_E, axis=0, dtype=jnp.int32)
  waits_M = valid_M & (expert_M < 0)
  rank_M = jnp.cumsum(waits_M, dtype=jnp.int32) - 1
  ends_E = jnp.cumsum(places - held_E, dtype=jnp.int32)
  free_M = jnp.searchsorted(ends_E, rank_M, side='right').astype(jnp.int32)
  filled_M = jnp.where(waits_M, free_M, expert_M)
  return jnp.where(valid_M, filled_M, 0)
