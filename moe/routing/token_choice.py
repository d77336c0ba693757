"""Routers in which a token's experts do not depend on other tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from moe import bounds
from moe.routing import assignment, balance, modality
from moe.routing.plan import Router, RouterInputs, RoutingPlan, State
from moe.types import Array, Pair


def top_k(scores_GME: Array, k: int) -> Array:
  """The experts with the k largest scores; ties go to the first expert.

  Raises:
    ValueError: if there are fewer than k experts.
  """
  E = scores_GME.shape[-1]
  if k > E:
    raise ValueError(
      f'TOP_K={k}, spare choices included, must be at most NUM_EXPERTS={E}:'
      ' lower TOP_K or num_spare.'
    )
  return jax.lax.top_k(scores_GME, k)[1].astype(jnp.int32)


def pick(a_GME: Array, expert_GMA: Array) -> Array:
  """Returns the entries [G, M, A] of a_GME at the chosen experts.

  Entries are selected by comparing indices, so the backward pass has no
  scatter.
  """
  experts_E = jnp.arange(a_GME.shape[-1], dtype=expert_GMA.dtype)
  picked = []
  for a in range(expert_GMA.shape[-1]):
    is_chosen_GME = expert_GMA[..., a, None] == experts_E
    picked.append(jnp.sum(jnp.where(is_chosen_GME, a_GME, 0.0), axis=-1))
  return jnp.stack(picked, axis=-1)


def check_groups(num_groups: int, top_groups: int, scaling: float) -> None:
  """Raises OutOfRange if one of these options of a router is out of range."""
  bounds.at_least(1, 'num_groups', num_groups, 'groups of experts')
  usable = 'groups that a token may use'
  bounds.within('top_groups', top_groups, usable, least=1, most=num_groups)
  bounds.within('scaling', scaling, 'of all weights', above=0)


def rows_of_choices(
  expert_GMA: Array, weight_GMA: Array, valid: Array
) -> tuple[Array, Array, Array, Array, Array]:
  """Makes the rows of a plan in which every token chooses A experts.

  First choices of all tokens come before second choices, as in GShard
  (https://arxiv.org/abs/2006.16668, algorithm 1). So a full expert drops second
  choices before first choices, and then later tokens before earlier ones.

  Args:
    expert_GMA: int32 numbers of experts; they are only copied.
    weight_GMA: float32.
    valid: bool [G, M] by token, or [G, M, A] by choice.

  Returns:
    (token_GR, expert_GR, weight_GR, valid_GR, rows_GMA) with R = A * M.
  """
  G, M, A = expert_GMA.shape
  tokens_M = jnp.arange(M, dtype=jnp.int32)
  token_GR = jnp.broadcast_to(jnp.tile(tokens_M, A), (G, A * M))
  rows_MA = tokens_M[:, None] + M * jnp.arange(A, dtype=jnp.int32)
  by_choice = valid if valid.ndim == 3 else valid[..., None]
  valid_GMA = jnp.broadcast_to(by_choice, (G, M, A))
  return (
    token_GR,
    expert_GMA.swapaxes(1, 2).reshape(G, A * M),
    weight_GMA.swapaxes(1, 2).reshape(G, A * M),
    valid_GMA.swapaxes(1, 2).reshape(G, A * M),
    jnp.broadcast_to(rows_MA, (G, M, A)),
  )


def plan_of_choices(
  inputs: RouterInputs,
  probs_GME: Array,
  expert_GMA: Array,
  weight_GMA: Array,
  losses: dict[str, Pair],
  num_spare: int = 0,
) -> RoutingPlan:
  """Makes a plan with A choices per token; a negative expert is no choice."""
  G, M, A = expert_GMA.shape
  valid_GM = inputs.valid_GM
  token_GR, expert_GR, weight_GR, valid_GR, rows_GMA = rows_of_choices(
    expert_GMA, weight_GMA, valid_GM
  )
  chosen_GMA = expert_GMA[..., : A - num_spare]
  statistics = balance.choice_statistics(probs_GME, chosen_GMA, valid_GM)
  if inputs.num_modalities > 1:
    statistics |= modality.statistics(probs_GME, chosen_GMA, inputs)
  return RoutingPlan(
    token_GR,
    jnp.maximum(expert_GR, 0),
    weight_GR,
    valid_GR & (expert_GR >= 0),
    rows_GMA,
    losses,
    statistics,
    num_spare,
  )


@dataclasses.dataclass(frozen=True)
class TokenChoice(Router):
  """Base of the routers that are trained with a load-balance loss.

  Attributes:
    balance_scope: units of the load-balance loss and of LIMoE's global entropy:
      'group', 'sequence' or 'global', see `balance.Scope`.
  """

  balance_scope: str = 'group'

  def __post_init__(self):
    super().__post_init__()
    bounds.one_of('balance_scope', self.balance_scope, balance.SCOPES)

  def init_state(self, num_experts: int) -> State:
    """Makes loads of 0 for the global scope, else {}."""
    if self.balance_scope != 'global':
      return {}
    return {'load_E': jnp.zeros(num_experts, jnp.float32)}

  def observe(self, state: State, statistics: dict[str, Pair]) -> State:
    """Adds the microbatch's load."""
    if 'load_E' not in state:
      return state
    return dict(state, load_E=state['load_E'] + statistics['load'][0])

  def update(self, state: State) -> State:
    """Resets the load to 0."""
    if 'load_E' not in state:
      return state
    return dict(state, load_E=jnp.zeros_like(state['load_E']))

  def losses(
    self,
    inputs: RouterInputs,
    probs_GME: Array,
    expert_GMA: Array,
    state: State,
    train: bool,
  ) -> dict[str, Pair]:
    """Computes the load-balance loss, the z-loss and the entropies."""
    scope = balance.Scope(self.balance_scope, inputs.length, inputs.batch_axes)
    is_counted = train and self.balance_scope == 'global'
    load_balance = balance.load_balance_loss(
      probs_GME,
      expert_GMA,
      inputs.valid_GM,
      scope,
      state['load_E'] if is_counted else None,
    )
    return {
      'load_balance': load_balance,
      **balance.logit_losses(inputs, probs_GME, scope),
    }


@dataclasses.dataclass(frozen=True)
class TopK(TokenChoice):
  """Softmax over the experts; a token uses the k most probable experts.

  Shazeer et al. (2017), https://arxiv.org/abs/1701.06538, but without noise.

  Attributes:
    renormalize: whether the k weights are divided by their sum, as in Mixtral
      (https://arxiv.org/abs/2401.04088). This equals a softmax over the k
      chosen logits. Otherwise the weights are probabilities over all experts.
      With k = 1 a renormalised weight is always 1, so the router gets no
      gradient: use Switch.
    num_spare: number of spare choices per token, see `RoutingPlan`. If weights
      are renormalised, those of spare choices are also divided by the sum of
      the first k weights.
    num_groups: number of groups of neighbouring experts, such as the experts of
      one node.
    top_groups: number of groups that a token may use, as in DeepSeek-V2. The
      score of a group is its largest logit.
    scaling: factor of all weights; 16 in DeepSeek-V2.
  """

  renormalize: bool = True
  num_spare: int = 0
  num_groups: int = 1
  top_groups: int = 1
  scaling: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.num_active == 1 and self.renormalize:
      raise ValueError(
        'TopK with TOP_K=1 needs renormalize=False: a renormalised single'
        ' weight is always 1, so the router would get no gradient; set'
        ' gates.TopK.renormalize = False, or use gates.Switch.'
      )
    check_groups(self.num_groups, self.top_groups, self.scaling)

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses the most probable experts of each token in its best groups."""
    del keys_G
    k, open_GME = self.num_active, inputs.logits_GME
    A = k + self.num_spare
    if self.num_groups > 1:
      open_GME = assignment.within_groups(
        open_GME, self.num_groups, self.top_groups, A, num_best=1
      )
    expert_GMA = top_k(open_GME, A)
    probs_GME = jax.nn.softmax(inputs.logits_GME, axis=-1)
    if self.renormalize:
      logits_GMA = pick(inputs.logits_GME, expert_GMA)
      log_sum_GM1 = jax.nn.logsumexp(
        logits_GMA[..., :k], axis=-1, keepdims=True
      )
      weight_GMA = jnp.exp(logits_GMA - log_sum_GM1)
    else:
      weight_GMA = pick(probs_GME, expert_GMA)
    if self.scaling != 1.0:
      weight_GMA *= self.scaling
    losses = self.losses(inputs, probs_GME, expert_GMA[..., :k], state, train)
    return plan_of_choices(
      inputs, probs_GME, expert_GMA, weight_GMA, losses, self.num_spare
    )


@dataclasses.dataclass(frozen=True)
class Switch(TokenChoice):
  """Top-1 routing; the output is scaled by the probability of the choice.

  Fedus et al. (2021), equations 1-2, https://arxiv.org/abs/2101.03961. The
  router's gradient flows through this probability.

  Attributes:
    num_active: always 1.
    jitter: training multiplies the router's inputs by uniform noise from 1 -
      jitter to 1 + jitter; the paper uses 0.01.
  """

  num_active: int = 1
  jitter: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.num_active != 1:
      raise ValueError(
        f'Switch routes each token to one expert, got TOP_K={self.num_active}:'
        ' set TOP_K = 1, or use gates.TopK.'
      )
    noise = 'relative noise on the inputs of the router'
    bounds.within('jitter', self.jitter, noise, least=0, below=1)

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses the most probable expert of each token."""
    return TopK(1, self.balance_scope, renormalize=False).route(
      inputs, state, keys_G, train
    )


@dataclasses.dataclass(frozen=True)
class NoisyTopK(TokenChoice):
  """Top-k of the logits; training adds Gaussian noise to them.

  Shazeer et al. (2017), section 2.1, https://arxiv.org/abs/1701.06538, with the
  fixed noise of V-MoE (Riquelme et al., 2021, section 2.3,
  https://arxiv.org/abs/2106.05974). The weights are the softmax of the noisy
  logits, not renormalised. This router adds the loss 'importance' and, in
  training, the loss 'noisy_load' to those of `TokenChoice`.

  Attributes:
    noise_std: E times the standard deviation of the noise on the logits.
  """

  noise_std: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    meaning = 'gates.TopK is the router without noise'
    bounds.within('noise_std', self.noise_std, meaning, above=0)

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses the experts with the k largest noisy logits."""
    logits_GME, valid_GM = inputs.logits_GME, inputs.valid_GM
    k, (M, E) = self.num_active, logits_GME.shape[1:]
    std = self.noise_std / E
    noisy_GME = logits_GME
    if train:
      noise = lambda key: jax.random.normal(key, (M, E), jnp.float32)
      noisy_GME = logits_GME + std * jax.vmap(noise)(keys_G)
    expert_GMA = top_k(noisy_GME, k)
    probs_GME = jax.nn.softmax(noisy_GME, axis=-1)
    losses = self.losses(inputs, probs_GME, expert_GMA, state, train)
    losses['importance'] = balance.importance_loss(
      jax.nn.softmax(logits_GME, axis=-1), valid_GM
    )
    if train:
      losses['noisy_load'] = balance.noisy_load_loss(
        logits_GME, noisy_GME, std, k, valid_GM
      )
    weight_GMA = pick(probs_GME, expert_GMA)
    return plan_of_choices(inputs, probs_GME, expert_GMA, weight_GMA, losses)


@dataclasses.dataclass(frozen=True)
class GShard(TokenChoice):
  """Top-2; in training, a token may randomly skip its second expert.

  Lepikhin et al. (2020), algorithm 1, https://arxiv.org/abs/2006.16668: both
  weights are divided by their sum. Training uses the second expert with
  probability min(1, 2 w_2), where w_2 is its weight. The load-balance loss
  counts only first choices. Unlike in the paper, evaluation always uses the
  second expert.

  Attributes:
    num_active: always 2.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.num_active != 2:
      raise ValueError(
        f'GShard routes each token to two experts, got TOP_K={self.num_active}:'
        ' set TOP_K = 2, or use gates.TopK.'
      )

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses the two most probable experts; training may drop the second."""
    expert_GMA = top_k(inputs.logits_GME, 2)
    probs_GME = jax.nn.softmax(inputs.logits_GME, axis=-1)
    weight_GMA = jax.nn.softmax(pick(inputs.logits_GME, expert_GMA), axis=-1)
    losses = self.losses(inputs, probs_GME, expert_GMA[..., :1], state, train)
    if train:
      M = expert_GMA.shape[1]
      draw = lambda key: jax.random.uniform(key, (M,), jnp.float32)
      is_used_GM = 2.0 * weight_GMA[..., 1] > jax.vmap(draw)(keys_G)
      second_GM = jnp.where(is_used_GM, expert_GMA[..., 1], -1)
      expert_GMA = jnp.stack([expert_GMA[..., 0], second_GM], axis=-1)
    return plan_of_choices(inputs, probs_GME, expert_GMA, weight_GMA, losses)


# This is 2^32 divided by the golden ratio, rounded to an odd number. Its
# products with consecutive ids are spread evenly over 32 bits (Knuth, The Art
# of Computer Programming, 6.4).
_GOLDEN = 2654435769


@dataclasses.dataclass(frozen=True)
class Hash(Router):
  """A token's id decides its experts; nothing is learned.

  Roller et al. (2021), https://arxiv.org/abs/2106.04426. The first expert is
  floor(E * frac(id / golden ratio)), but for rounding. Consecutive ids are
  spread almost evenly over the experts. The paper draws a random table instead.
  The numbers of a token's k experts are E // k apart. Every weight is 1 / k.

  Attributes:
    num_active: k.
  """

  num_active: int = 1

  def route(
    self, inputs: RouterInputs, state: State, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Computes the experts of each id."""
    del state, keys_G, train
    k, E = self.num_active, inputs.logits_GME.shape[-1]
    if k > E or E >= 2**16:
      raise ValueError(
        f'Hash needs TOP_K={k} <= NUM_EXPERTS={E} < 65536: change one of them.'
      )
    hash_GM = inputs.token_ids_GM.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    # The upper 16 bits of the hash, divided by 2^16, are about frac(id / golden
    # ratio). Their product with E fits 32 bits.
    first_GM = ((hash_GM >> 16) * jnp.uint32(E)) >> 16
    apart_A = jnp.arange(k, dtype=jnp.int32) * (E // k)
    expert_GMA = (first_GM.astype(jnp.int32)[..., None] + apart_A) % E
    weight_GMA = jnp.full(expert_GMA.shape, 1.0 / k, jnp.float32)
    experts_E = jnp.arange(E, dtype=jnp.int32)
    probs_GME = sum(
      jnp.where(expert_GMA[..., a, None] == experts_E, 1.0 / k, 0.0)
      for a in range(k)
    )
    return plan_of_choices(inputs, probs_GME, expert_GMA, weight_GMA, {})
