"""Routers that change the inputs or the plan of another router."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from moe import bounds
from moe.routing.plan import Router, RouterInputs, RoutingPlan, State
from moe.routing.slots import requested_rows
from moe.routing.token_choice import TopK
from moe.types import Array, Pair


@dataclasses.dataclass(frozen=True)
class Wrapper(Router):
  """Base of the routers that let an inner router choose.

  Attributes:
    router: `num_active` -> the inner router.
  """

  router: Callable[..., Router] = TopK

  def __post_init__(self):
    super().__post_init__()
    _ = self.inner  # This raises errors of the inner router's options.

  @functools.cached_property
  def inner(self) -> Router:
    """The router that chooses the experts."""
    return self.router(num_active=self.num_active)

  @property
  def is_causal(self) -> bool:
    """Delegates to the inner router."""
    return self.inner.is_causal

  @property
  def is_causal_in_training(self) -> bool:
    """Delegates to the inner router."""
    return self.inner.is_causal_in_training

  @property
  def num_added(self) -> int:
    """Delegates to the inner router."""
    return self.inner.num_added

  @property
  def jitter(self) -> float:
    """Delegates to the inner router."""
    return self.inner.jitter

  def mean_active(self, num_experts: int) -> float:
    """Delegates to the inner router."""
    return self.inner.mean_active(num_experts)

  def init_state(self, num_experts: int) -> State:
    """Delegates to the inner router."""
    return self.inner.init_state(num_experts)

  def observe(self, state: State, statistics: dict[str, Pair]) -> State:
    """Delegates to the inner router."""
    return self.inner.observe(state, statistics)

  def update(self, state: State) -> State:
    """Delegates to the inner router."""
    return self.inner.update(state)


@dataclasses.dataclass(frozen=True)
class NullExperts(Wrapper):
  """Adds experts that compute nothing, so that easy tokens cost less.

  These are the zero-computation experts of MoE++ (Jin et al., 2024, section
  3.1, https://arxiv.org/abs/2410.07348), without its constant experts.
  LongCat-Flash (2025, https://arxiv.org/abs/2509.01322) uses copy experts
  alone. A token chooses among the E experts and n = num_null + num_copy added
  experts. The output of a null expert is 0. The output of a copy expert is the
  token itself. No rows are sent to null or copy experts. If all E + n experts
  are used equally often, k E / (E + n) of a token's k choices compute. In
  losses, loads, biases and statistics the added experts come after the E
  others.

  Attributes:
    num_null: number of null experts.
    num_copy: number of copy experts.
  """

  num_null: int = 0
  num_copy: int = 0

  def __post_init__(self):
    super().__post_init__()
    bounds.at_least(0, 'num_null', self.num_null, 'experts that give 0')
    bounds.at_least(0, 'num_copy', self.num_copy, 'experts that give the token')
    if not self._num_own():
      raise ValueError(
        f'NullExperts needs experts to add, got num_null={self.num_null} and'
        f' num_copy={self.num_copy}: set one of them above 0.'
      )

  @property
  def num_added(self) -> int:
    """Number of experts that this router and the inner router add."""
    return self._num_own() + self.inner.num_added

  def _num_own(self) -> int:
    return self.num_null + self.num_copy

  def mean_active(self, num_experts: int) -> float:
    """Mean number of experts that compute a token, without the added ones.

    All experts, also the added ones, are assumed to be chosen equally often.
    """
    total = num_experts + self._num_own()
    return self.inner.mean_active(total) * num_experts / total

  def init_state(self, num_experts: int) -> State:
    """Makes the state of the E experts and of the added experts."""
    return self.inner.init_state(num_experts + self._num_own())

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Routes, then removes the rows of null and copy experts from the plan.

    Raises:
      ValueError: if experts choose tokens.
    """
    plan = self.inner.route(inputs, state, keys_G, train)
    G, M, total = inputs.logits_GME.shape
    A = plan.rows_GMA.shape[-1]
    if plan.expert_GR.shape[1] != A * M:
      raise ValueError(
        'NullExperts needs a router in which tokens choose, got'
        f' {type(self.inner).__name__}: use gates.TopK.'
      )
    E = total - self._num_own()
    is_copy_GR = plan.valid_GR & (plan.expert_GR >= E + self.num_null)
    copied_GR = jnp.where(is_copy_GR, plan.weight_GR, 0.0)
    # Rows are sorted by choice, and the last choices are spare.
    own_GAM = copied_GR.reshape(G, A, M)[:, : A - plan.num_spare]
    is_real_GR = plan.expert_GR < E
    return plan._replace(
      expert_GR=jnp.where(is_real_GR, plan.expert_GR, 0),
      valid_GR=plan.valid_GR & is_real_GR,
      own_weight_GM=own_GAM.sum(axis=1) if self.num_copy else None,
    )


@dataclasses.dataclass(frozen=True)
class ModalityGrouped(Wrapper):
  """Reserves some experts for the tokens of one modality.

  Modality-aware experts are from Lin et al. (2024), MoMa,
  https://arxiv.org/abs/2407.21770, and Bao et al. (2022), VLMo,
  https://arxiv.org/abs/2111.02358. Here they are made by a mask: the logits of
  experts that are reserved for another modality are -inf. Unlike in MoMa, all
  modalities share one router, and some experts may be open to all modalities.

  Some routers may still choose an expert that is closed to the token: if a
  balanced assignment has no other place, if a group of experts has too few open
  experts, or if a hash makes the choice. Such a choice is dropped and counted
  as dropped.

  Attributes:
    reserved: number of experts that each modality has for itself, from expert 0
      on, in the order of `TokenBatch.modality`. The other experts are open to
      all modalities. Tokens of a modality that is not listed may use every
      expert.
  """

  reserved: tuple[int, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for count in self.reserved:
      bounds.at_least(0, 'reserved', count, 'experts of one modality')

  def _check(self, num_experts: int) -> None:
    shared = num_experts - sum(self.reserved)
    if shared < 0 or not self.reserved:
      raise ValueError(
        f'reserved={self.reserved} must name a number of experts for each'
        f' modality, at most {num_experts} together: change it.'
      )
    inner = self.inner
    choices = inner.num_active + inner.num_spare
    if min(self.reserved) + shared < choices:
      raise ValueError(
        f'reserved={self.reserved} of {num_experts} experts leaves a modality'
        f' fewer than the {choices} experts that each of its tokens chooses:'
        ' reserve more for it, or fewer for others.'
      )

  def update(self, state: State) -> State:
    """Updates the state of each modality's experts by itself.

    So the bias of an expert depends on the loads of the experts that see the
    same tokens. With one mean load over all experts, the biases of a modality
    with many tokens would all fall alike. If some experts are open to all
    modalities, or if the router adds experts, all experts are updated together.
    """
    sizes = {a.shape[-1] for name, a in state.items() if name.endswith('_E')}
    if sizes != {sum(self.reserved)}:
      return self.inner.update(state)
    parts, first = [], 0
    for count in self.reserved:
      of_modality = {
        name: a[..., first : first + count] if name.endswith('_E') else a
        for name, a in state.items()
      }
      parts.append(self.inner.update(of_modality))
      first += count
    return {
      name: jnp.concatenate([part[name] for part in parts], axis=-1)
      if name.endswith('_E')
      else parts[0][name]
      for name in state
    }

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Routes by masked logits, and drops choices of masked experts."""
    G, M, E = inputs.logits_GME.shape
    self._check(E)
    experts_E = jnp.arange(E, dtype=jnp.int32)
    modality_GM1 = inputs.modality_GM[..., None]
    allowed_GME = jnp.ones((G, M, E), bool)
    first = 0
    for modality, count in enumerate(self.reserved):
      mine_E = (experts_E >= first) & (experts_E < first + count)
      is_listed_GM1 = modality_GM1 < len(self.reserved)
      allowed_GME &= ~mine_E | ~is_listed_GM1 | (modality_GM1 == modality)
      first += count
    logits_GME = jnp.where(allowed_GME, inputs.logits_GME, -jnp.inf)
    plan = self.inner.route(
      inputs._replace(logits_GME=logits_GME), state, keys_G, train
    )
    place_GR = plan.token_GR * E + plan.expert_GR
    is_allowed_GR = jnp.take_along_axis(
      allowed_GME.reshape(G, M * E), place_GR, axis=1, mode='clip'
    )
    closed_GR = requested_rows(plan) & ~is_allowed_GR
    return plan._replace(
      valid_GR=plan.valid_GR & is_allowed_GR,
      dropped=plan.dropped + jnp.sum(closed_GR, dtype=jnp.float32),
    )
