"""Routers: who sees which token. Float32 from the logits to the weights."""

import dataclasses

import jax
import jax.numpy as jnp

from moe.routing import balance
from moe.routing.plan import RouterInputs, RoutingPlan, rows_of_choices
from moe.types import Array, PyTree


def _token_choice_plan(
  inputs: RouterInputs,
  probs_GME: Array,
  expert_GMA: Array,
  weight_GMA: Array,
  state: PyTree,
) -> RoutingPlan:
  """The plan, losses and statistics of routers in which tokens choose."""
  valid_GM = inputs.valid_GM
  rows = rows_of_choices(expert_GMA, weight_GMA, valid_GM)
  losses = {
    'load_balance': balance.load_balance_loss(probs_GME, expert_GMA, valid_GM),
    'router_z': balance.router_z_loss(inputs.logits_GME, valid_GM),
  }
  statistics = balance.choice_statistics(probs_GME, expert_GMA, valid_GM)
  return RoutingPlan(*rows, state, losses, statistics)


@dataclasses.dataclass(frozen=True)
class TopK:
  """Softmax over the experts, then the k most probable.

  Shazeer et al. (2017), https://arxiv.org/abs/1701.06538, without noise.

  Attributes:
    num_active: k, experts per token.
    renormalize: whether the k weights are divided by their sum, as in Mixtral;
      otherwise they are the plain probabilities. With k = 1 a renormalised
      weight is always 1 and no gradient reaches the router: use Switch.
  """

  num_active: int = 2
  renormalize: bool = True

  def __post_init__(self):
    if self.num_active == 1 and self.renormalize:
      raise ValueError(
        'TopK with num_active=1 needs renormalize=False: a renormalised single'
        ' weight is always 1, so the router would get no gradient; set it, or'
        ' use gates.Switch.'
      )

  def route(
    self, inputs: RouterInputs, state: PyTree, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses the k most probable experts of each token."""
    del keys_G, train
    E = inputs.logits_GME.shape[-1]
    if self.num_active > E:
      raise ValueError(
        f'TOP_K={self.num_active} must be at most NUM_EXPERTS={E}: lower it.'
      )
    probs_GME = jax.nn.softmax(inputs.logits_GME, axis=-1)
    weight_GMA, expert_GMA = top_k(probs_GME, self.num_active)
    if self.renormalize:
      weight_GMA = weight_GMA / weight_GMA.sum(axis=-1, keepdims=True)
    return _token_choice_plan(inputs, probs_GME, expert_GMA, weight_GMA, state)


@dataclasses.dataclass(frozen=True)
class Switch:
  """Top-1 routing; the output is scaled by the probability of the choice.

  Fedus et al. (2021), https://arxiv.org/abs/2101.03961, without input jitter.
  The gradient reaches the router through that probability.

  Attributes:
    num_active: always 1.
  """

  num_active: int = 1

  def __post_init__(self):
    if self.num_active != 1:
      raise ValueError(
        f'Switch routes each token to one expert, got TOP_K={self.num_active}:'
        ' set TOP_K = 1, or use gates.TopK.'
      )

  def route(
    self, inputs: RouterInputs, state: PyTree, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses the most probable expert of each token."""
    return TopK(num_active=1, renormalize=False).route(
      inputs, state, keys_G, train
    )


def top_k(scores_GME: Array, k: int) -> tuple[Array, Array]:
  """The k largest scores and their experts; of equal ones the first expert."""
  values_GMA, expert_GMA = jax.lax.top_k(scores_GME, k)
  return values_GMA, expert_GMA.astype(jnp.int32)
