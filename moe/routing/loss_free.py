"""Routers that are balanced by a bias of the choices, without a gradient."""

import dataclasses

import jax
import jax.numpy as jnp

from moe import bounds
from moe.routing import assignment, balance
from moe.routing.plan import Router, RouterInputs, RoutingPlan, State
from moe.routing.token_choice import (
  TokenChoice,
  check_groups,
  pick,
  plan_of_choices,
  top_k,
)
from moe.types import Array, Pair


def _normalised_sigmoid(
  logits_GME: Array, expert_GMA: Array, num_active: int, scaling: float
) -> tuple[Array, Array]:
  """Returns (probabilities of all experts, weights of the chosen ones).

  A probability is a sigmoid score divided by the sum over all experts. A weight
  is a sigmoid score divided by the sum over the first `num_active` choices, and
  multiplied by `scaling`.
  """
  score_GME = jax.nn.sigmoid(logits_GME)
  score_GMA = pick(score_GME, expert_GMA)
  # If all logits of a token are very low, all sigmoids underflow to 0.
  tiny = jnp.float32(1e-20)
  chosen_GM1 = score_GMA[..., :num_active].sum(axis=-1, keepdims=True)
  probs_GME = score_GME / (score_GME.sum(axis=-1, keepdims=True) + tiny)
  return probs_GME, scaling * score_GMA / (chosen_GM1 + tiny)


def _bias_norm(bias_E: Array, valid_GM: Array) -> Pair:
  """Norm of the bias as (sum, weight); the weight is the number of tokens."""
  tokens = valid_GM.sum(dtype=jnp.float32)
  return jnp.sqrt(jnp.sum(jnp.square(bias_E))) * tokens, tokens


def _check_several(router: Router) -> None:
  if router.num_active == 1:
    raise ValueError(
      f'{type(router).__name__} needs TOP_K of at least 2, got 1: a single'
      ' renormalised weight is constant, so the router would get no gradient;'
      ' use gates.Switch.'
    )


@dataclasses.dataclass(frozen=True)
class Sigmoid(TokenChoice):
  """DeepSeek-V3's router: sigmoid scores, balanced by a bias of the choices.

  DeepSeek-AI (2024), equations 13-16 and section 2.1.2,
  https://arxiv.org/abs/2412.19437. With scores s = sigmoid(logits), a token
  chooses the experts of the k largest s + bias. The weights are s, without the
  bias, divided by the sum of the chosen s, times `scaling`. After a step each
  expert's bias rises by `bias_rate` if its load in the whole batch is below the
  mean, and falls by `bias_rate` if the load is above. The load-balance loss and
  the statistics use s / sum s. With balance_scope = 'sequence' the load-balance
  loss is the complementary loss of the paper.

  Attributes:
    num_groups: number of groups of neighbouring experts, such as those of a
      node.
    top_groups: number of groups that a token may use. The score of a group is
      the sum of its two best scores.
    scaling: factor of all weights; 2.5 in DeepSeek-V3.
    bias_rate: by how much a step changes each bias.
    num_spare: number of spare choices per token, for which see `RoutingPlan`.
  """

  num_groups: int = 1
  top_groups: int = 1
  scaling: float = 1.0
  bias_rate: float = 1e-3
  num_spare: int = 0

  def __post_init__(self):
    super().__post_init__()
    _check_several(self)
    check_groups(self.num_groups, self.top_groups, self.scaling)
    bounds.within('bias_rate', self.bias_rate, 'the step of the bias', least=0)

  def init_state(self, num_experts: int) -> State:
    """Makes a bias and a load of 0 for each expert."""
    zeros_E = jnp.zeros(num_experts, jnp.float32)
    return {'bias_E': zeros_E, 'load_E': zeros_E}

  def update(self, state: State) -> State:
    """Changes the bias according to the step's load; resets the load to 0."""
    bias_E = balance.signed_bias(
      state['bias_E'], state['load_E'], self.bias_rate
    )
    return {'bias_E': bias_E, 'load_E': jnp.zeros_like(bias_E)}

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses by biased scores; the weights are scores without bias."""
    del keys_G
    k, logits_GME = self.num_active, inputs.logits_GME
    A = k + self.num_spare
    biased_GME = jax.nn.sigmoid(logits_GME) + state['bias_E']
    # A masked expert stays masked, whatever its bias is.
    biased_GME = jnp.where(logits_GME > -jnp.inf, biased_GME, -jnp.inf)
    if self.num_groups > 1:
      biased_GME = assignment.within_groups(
        biased_GME, self.num_groups, self.top_groups, A
      )
    expert_GMA = top_k(jax.lax.stop_gradient(biased_GME), A)
    probs_GME, weight_GMA = _normalised_sigmoid(
      logits_GME, expert_GMA, k, self.scaling
    )
    losses = self.losses(inputs, probs_GME, expert_GMA[..., :k], state, train)
    plan = plan_of_choices(
      inputs, probs_GME, expert_GMA, weight_GMA, losses, self.num_spare
    )
    plan.statistics['bias_norm'] = _bias_norm(state['bias_E'], inputs.valid_GM)
    return plan


@dataclasses.dataclass(frozen=True)
class Quantile(Router):
  """Quantile balancing: the bias that would have balanced the last batch.

  Su (2026), https://kexue.fm/archives/11619, as in Megatron-Core
  (`quantile_balancing`). A token chooses the experts of the k largest logits +
  bias. The weights are sigmoids of the plain logits, divided by the sum of the
  chosen ones, times `scaling`. Training computes each group's price of each
  expert (`assignment.quantiles`). After a step
    bias = decay * bias - (1 - decay) * (mean price over the batch),
  and the mean of the bias over experts is subtracted from it. The mean price
  weights groups by their valid tokens, so it does not depend on the number of
  microbatches or devices. Megatron-Core weights microbatches and devices
  equally. There is no load-balance loss.

  Attributes:
    decay: share of the old bias that a step keeps.
    scaling: factor of all weights.
  """

  decay: float = 0.9
  scaling: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    _check_several(self)
    kept = 'share of the old bias that is kept'
    bounds.within('decay', self.decay, kept, least=0, below=1)
    bounds.within('scaling', self.scaling, 'of all weights', above=0)

  def init_state(self, num_experts: int) -> State:
    """Makes the state: biases, prices and the number of tokens, all 0."""
    zeros_E = jnp.zeros(num_experts, jnp.float32)
    tokens = jnp.zeros((), jnp.float32)
    return {'bias_E': zeros_E, 'price_E': zeros_E, 'tokens': tokens}

  def observe(self, state: State, statistics: dict[str, Pair]) -> State:
    """Adds the microbatch's prices, weighted by its tokens."""
    price_E, tokens = statistics['price']
    return dict(
      state,
      price_E=state['price_E'] + price_E,
      tokens=state['tokens'] + tokens,
    )

  def update(self, state: State) -> State:
    """Moves the bias towards the negative of the step's mean price."""
    tokens = state['tokens'][..., None]
    mean_E = state['price_E'] / jnp.maximum(tokens, 1.0)
    bias_E = self.decay * state['bias_E'] - (1.0 - self.decay) * mean_E
    bias_E -= bias_E.mean(axis=-1, keepdims=True)
    return {
      'bias_E': jnp.where(tokens > 0, bias_E, state['bias_E']),
      'price_E': jnp.zeros_like(bias_E),
      'tokens': jnp.zeros_like(state['tokens']),
    }

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses by biased logits; the weights are scores without bias."""
    del keys_G
    k, E = self.num_active, inputs.logits_GME.shape[-1]
    if k >= E:
      raise ValueError(
        f'Quantile needs TOP_K={k} below NUM_EXPERTS={E}, since a token that'
        ' chooses every expert leaves nothing to balance: lower TOP_K.'
      )
    biased_GME = inputs.logits_GME + state['bias_E']
    expert_GMA = top_k(jax.lax.stop_gradient(biased_GME), k)
    probs_GME, weight_GMA = _normalised_sigmoid(
      inputs.logits_GME, expert_GMA, k, self.scaling
    )
    losses = balance.logit_losses(inputs, probs_GME)
    plan = plan_of_choices(inputs, probs_GME, expert_GMA, weight_GMA, losses)
    plan.statistics['bias_norm'] = _bias_norm(state['bias_E'], inputs.valid_GM)
    if train:
      price_GE = assignment.quantiles(
        inputs.logits_GME, state['bias_E'], k, inputs.valid_GM
      )
      tokens_G = inputs.valid_GM.sum(axis=1, dtype=jnp.float32)
      price_E = jnp.sum(price_GE * tokens_G[:, None], axis=0)
      plan.statistics['price'] = (price_E, tokens_G.sum())
    return plan
