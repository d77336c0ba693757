"""Routers that look at all tokens of a routing group before they choose.

All of them do this in training, so a token's experts depend on later tokens of
the group. `ExpertChoice` also does it in evaluation.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe import bounds
from moe.routing import assignment, balance
from moe.routing.plan import Router, RouterInputs, RoutingPlan, State
from moe.routing.slots import capacity
from moe.routing.token_choice import (
  pick,
  plan_of_choices,
  top_k,
)
from moe.types import Array


@dataclasses.dataclass(frozen=True)
class ExpertChoice(Router):
  """Each expert chooses its C best tokens of the group.

  Zhou et al. (2022), section 3.2, https://arxiv.org/abs/2202.09368: with
  probabilities = softmax(logits) over experts, each expert takes the C = M k /
  E tokens that give it the largest probabilities. These become the weights. No
  expert has more than C tokens, so there is no load-balance loss, and nothing
  is dropped at a capacity factor of at least 1. The paper limits the experts
  per token by a regularised assignment. Here each token keeps at most
  `max_per_token` choices, those with the largest weights.

  Whether an expert takes a token depends on later tokens. So a decoder with
  this router sees the future in training, and cannot generate token by token.

  All experts may take the same token, so the plan has A = E rows per token. For
  hundreds of experts set `max_per_token`; then A = max_per_token.

  Attributes:
    num_active: k, mean number of experts per token.
    max_per_token: largest number of experts per token; 0 for no limit.
  """

  max_per_token: int = 0

  is_causal = is_causal_in_training = False

  def __post_init__(self):
    super().__post_init__()
    meaning = 'experts per token at most, 0 for no cap'
    bounds.at_least(0, 'max_per_token', self.max_per_token, meaning)

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Lets each expert choose; its rows are in the order of their weights."""
    del state, keys_G, train
    logits_GME, valid_GM = inputs.logits_GME, inputs.valid_GM
    G, M, E = logits_GME.shape
    C = capacity(M, self.num_active, E, 1.0)
    A = min(E, self.max_per_token or E)
    probs_GME = jax.nn.softmax(logits_GME, axis=-1)
    is_open_GME = valid_GM[..., None] & (logits_GME > -jnp.inf)
    score_GEM = jnp.where(is_open_GME, probs_GME, -1.0).swapaxes(1, 2)
    score_GEC, token_GEC = jax.lax.top_k(score_GEM, C)
    score_GR = score_GEC.reshape(G, E * C)
    token_GR = token_GEC.reshape(G, E * C).astype(jnp.int32)
    expert_GR = jnp.broadcast_to(
      jnp.repeat(jnp.arange(E, dtype=jnp.int32), C), (G, E * C)
    )
    valid_GR = score_GR >= 0
    rows_GME = _rows_by_expert(token_GR, expert_GR, valid_GR, (M, E))
    rows_GMA = rows_GME
    if A < E:
      kept_GME = jnp.where(rows_GME >= 0, probs_GME, -1.0)
      expert_GMA = top_k(jax.lax.stop_gradient(kept_GME), A)
      rows_GMA = jnp.take_along_axis(rows_GME, expert_GMA, axis=2)
      valid_GR = _named(rows_GMA, E * C)
    statistics = balance.choice_statistics(
      probs_GME, jnp.argmax(probs_GME, axis=-1)[..., None], valid_GM
    )
    load_E = valid_GR.reshape(G, E, C).sum(axis=(0, 2), dtype=jnp.float32)
    statistics['load'] = (load_E, load_E.sum())
    return RoutingPlan(
      token_GR,
      expert_GR,
      jnp.maximum(score_GR, 0.0),
      valid_GR,
      rows_GMA,
      balance.logit_losses(inputs, probs_GME),
      statistics,
    )


def _rows_by_expert(
  token_GR: Array, expert_GR: Array, valid_GR: Array, shape: tuple[int, int]
) -> Array:
  """Returns the row of each pair of token and expert, or -1: [G, M, E]."""
  M, E = shape
  G, R = token_GR.shape
  # Invalid rows get a place behind the end. mode='drop' ignores it.
  place_GR = jnp.where(valid_GR, token_GR * E + expert_GR, M * E)
  rows_R = jnp.arange(R, dtype=jnp.int32)
  put = lambda place_R: (
    jnp.full(M * E, -1, jnp.int32).at[place_R].set(rows_R, mode='drop')
  )
  return jax.vmap(put)(place_GR).reshape(G, M, E)


def _named(rows_GMA: Array, num_rows: int) -> Array:
  """Bool [G, R]: whether each row occurs in rows_GMA."""
  G = rows_GMA.shape[0]
  place_GR = jnp.where(rows_GMA >= 0, rows_GMA, num_rows).reshape(G, -1)
  put = lambda place_R: (
    jnp.zeros(num_rows, bool).at[place_R].set(True, mode='drop')
  )
  return jax.vmap(put)(place_GR)


@dataclasses.dataclass(frozen=True)
class Base(Router):
  """One expert per token; in training no expert gets more than an even share.

  BASE layers (Lewis et al., 2021, https://arxiv.org/abs/2103.16716); CPM-2 has
  the same balanced assignment (Zhang et al., 2021,
  https://arxiv.org/abs/2106.10715). Training uses an assignment with nearly the
  largest sum of logits (`assignment.balanced_assignment`); evaluation uses each
  token's best expert. The weight is sigmoid(logit). The router's gradient flows
  through the weight. There is no load-balance loss. The paper shuffles tokens
  between devices before it assigns them; here the assignment stays within a
  routing group.

  Attributes:
    num_active: always 1.
  """

  num_active: int = 1

  is_causal_in_training = False

  def __post_init__(self):
    super().__post_init__()
    if self.num_active != 1:
      raise ValueError(
        f'Base routes each token to one expert, got TOP_K={self.num_active}:'
        ' set TOP_K = 1, or use gates.Sinkhorn.'
      )

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Training balances the loads; evaluation takes the best expert."""
    del state, keys_G
    logits_GME = inputs.logits_GME
    if train:
      expert_GM = assignment.balanced_assignment(logits_GME, inputs.valid_GM)
      expert_GMA = expert_GM[..., None]
    else:
      expert_GMA = top_k(logits_GME, 1)
    probs_GME = jax.nn.softmax(logits_GME, axis=-1)
    weight_GMA = jax.nn.sigmoid(pick(logits_GME, expert_GMA))
    losses = balance.logit_losses(inputs, probs_GME)
    return plan_of_choices(inputs, probs_GME, expert_GMA, weight_GMA, losses)


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Router):
  """Top-k of a balanced soft assignment of the group's tokens.

  S-BASE (Clark et al., 2022, section 3.1, https://arxiv.org/abs/2202.01169).
  Training chooses experts by the logits after Sinkhorn's scaling
  (`assignment.sinkhorn`); evaluation chooses by the plain logits. The weights
  are the softmax of the plain logits. There is no load-balance loss. Unlike in
  the paper, a token may have several experts, and the number of iterations is
  fixed.

  Attributes:
    num_iterations: number of Sinkhorn's iterations; more of them balance
      better.
  """

  num_iterations: int = 8

  is_causal_in_training = False

  def __post_init__(self):
    super().__post_init__()
    meaning = 'scalings of tokens and experts'
    bounds.at_least(1, 'num_iterations', self.num_iterations, meaning)

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses by balanced logits in training, by plain logits in evaluation."""
    del state, keys_G
    scores_GME = logits_GME = inputs.logits_GME
    if train:
      scores_GME = assignment.sinkhorn(
        logits_GME, inputs.valid_GM, self.num_iterations
      )
    expert_GMA = top_k(scores_GME, self.num_active)
    probs_GME = jax.nn.softmax(logits_GME, axis=-1)
    weight_GMA = pick(probs_GME, expert_GMA)
    losses = balance.logit_losses(inputs, probs_GME)
    return plan_of_choices(inputs, probs_GME, expert_GMA, weight_GMA, losses)
