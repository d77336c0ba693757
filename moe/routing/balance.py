"""Losses and biases that balance a router, and statistics of its choices.

Every loss is an unscaled pair (sum, weight). The weight is the number of valid
tokens, which depends on the batch alone. Sums are added over microbatches and
devices before they are divided by the total weight. Products are elementwise
and then summed, so they are float32 on every platform.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.routing.plan import RouterInputs
from moe.types import MODALITIES, Array, Pair

SCOPES = ('group', 'sequence', 'global')


class Scope(NamedTuple):
  """Units of tokens, over which loads and mean probabilities are computed.

  Attributes:
    name: what a unit is: 'group', a routing group; 'sequence', a row of the
      batch; 'global', a microbatch over all devices.
    length: tokens per sequence; 0 if no device has whole sequences.
    batch_axes: mesh axes that divide the tokens of the whole batch.
  """

  name: str = 'group'
  length: int = 0
  batch_axes: tuple[str, ...] = ()

  def units(self, a_GM: Array) -> Array:
    """Regroups [G, M, ...] so that each group has the tokens of one unit.

    Raises:
      ValueError: if a unit is a sequence but devices have parts of sequences.
    """
    if self.name == 'group':
      return a_GM
    G, M, *rest = a_GM.shape
    if self.name == 'global':
      return a_GM.reshape(1, G * M, *rest)
    if not self.length or (G * M) % self.length:
      raise ValueError(
        "balance_scope='sequence' needs whole sequences on each device, got"
        ' parts of them: set MESH_CONTEXT = 1, or balance_scope to one of'
        " 'group' and 'global'."
      )
    return a_GM.reshape(-1, self.length, *rest)

  def total(self, a_GE: Array) -> Array:
    """Adds sums [G, E] over all devices if the scope is 'global'."""
    if self.name == 'global' and self.batch_axes:
      return jax.lax.psum(a_GE, self.batch_axes)
    return a_GE


GROUP = Scope()


def choice_counts(
  expert_GMA: Array, valid_GM: Array, num_experts: int
) -> Array:
  """Counts how often each group chooses each expert: float32 [G, E].

  The loop adds one choice after the other, so that no [G, M, A, E] array
  exists.

  Args:
    expert_GMA: int32 in [0, E); negative where there is no choice.
    valid_GM: bool, False for padding.
    num_experts: E.
  """
  experts_E = jnp.arange(num_experts, dtype=expert_GMA.dtype)
  chosen_GME = jnp.zeros((), jnp.float32)
  for a in range(expert_GMA.shape[-1]):
    is_chosen_GME = expert_GMA[..., a, None] == experts_E
    chosen_GME += is_chosen_GME.astype(jnp.float32)
  return jnp.sum(jnp.where(valid_GM[..., None], chosen_GME, 0.0), axis=1)


def load_balance_loss(
  probs_GME: Array,
  expert_GMA: Array,
  valid_GM: Array,
  scope: Scope = GROUP,
  load_before_E: Array | None = None,
) -> Pair:
  """The load-balance loss of Switch, weighted by tokens.

  Fedus et al. (2021), equations 4-6, https://arxiv.org/abs/2101.03961: the loss
  is E times the sum over experts of f * P, where f is the expert's share of the
  assignments and P its mean probability. Unlike in the paper, f counts all
  choices of a token, and padding is left out. f and P are computed for each
  unit of the scope, and units are weighted by their number of tokens. No
  gradient flows through f. With scope 'global' (Qiu et al., 2025,
  https://arxiv.org/abs/2501.11873) the unit is the microbatch over all devices.
  Then f counts the assignments of this step, up to and including the current
  microbatch. Each device returns the part of the sum that its own tokens add.

  Args:
    probs_GME: distribution over experts, float32.
    expert_GMA: chosen experts, int32 in [0, E); negative where there is none.
    valid_GM: bool, False for padding.
    scope: the tokens of a unit.
    load_before_E: number of assignments in earlier microbatches of the step.

  Returns:
    (sum, weight): sum / weight is 1.0 for an even router and at most E.

  Raises:
    ValueError: if the arguments disagree on groups or tokens.
  """
  if probs_GME.shape[:2] != expert_GMA.shape[:2]:
    raise ValueError(
      f'probs_GME {probs_GME.shape} and expert_GMA {expert_GMA.shape} must'
      ' agree on groups and tokens: pass both as the router returned them.'
    )
  E = probs_GME.shape[-1]
  unit_valid_GM = scope.units(valid_GM)
  count_GE = scope.total(
    choice_counts(scope.units(expert_GMA), unit_valid_GM, E)
  )
  if load_before_E is not None:
    count_GE += load_before_E
  # The divisor is at least 1, so a unit that is all padding gives 0.
  share_GE = count_GE / jnp.maximum(count_GE.sum(axis=-1, keepdims=True), 1.0)
  prob_GE = jnp.sum(
    scope.units(probs_GME), axis=1, where=unit_valid_GM[..., None]
  )
  loss = E * jnp.sum(jax.lax.stop_gradient(share_GE) * prob_GE)
  return loss, valid_GM.astype(jnp.float32).sum()


def logit_losses(
  inputs: RouterInputs, probs_GME: Array, scope: Scope = GROUP
) -> dict[str, Pair]:
  """The losses that depend on a router's logits but not on its choices.

  Unlike in LIMoE, the global entropy weights modalities by their tokens and has
  no threshold. In each unit of the scope, a modality with n tokens and mean
  distribution P adds n * sum_e P_e log P_e. The logarithm is treated as a
  constant: its share of the gradient is n * sum_e dP_e, which is 0 because
  probabilities sum to 1. Then the term is a sum over tokens, so it can be added
  over devices for any scope.

  Args:
    inputs: what the router reads.
    probs_GME: the router's distribution over experts, float32.
    scope: the units of the global entropy.

  Returns:
    router_z: squared log-partition of the logits. This loss keeps logits small
      (Zoph et al., 2022, equation 5, https://arxiv.org/abs/2202.08906).
    local_entropy: entropy of each token's distribution. It is small if each
      token prefers few experts (LIMoE, Mustafa et al., 2022, equation 2,
      https://arxiv.org/abs/2206.02770).
    global_entropy: negative entropy of each modality's mean distribution. It is
      small if a modality as a whole uses many experts (LIMoE, equation 3).
  """
  valid_GM = inputs.valid_GM.astype(jnp.float32)
  tokens = valid_GM.sum()
  log_z_GM = jax.nn.logsumexp(inputs.logits_GME, axis=-1)
  router_z = jnp.sum(jnp.square(log_z_GM) * valid_GM)
  local = jnp.sum(entropy(probs_GME) * valid_GM)
  unit_probs_GME = scope.units(probs_GME)
  unit_modality_GM = scope.units(inputs.modality_GM)
  unit_valid_GM = scope.units(inputs.valid_GM)
  loss = jnp.zeros((), jnp.float32)
  for modality in range(len(MODALITIES)):
    mine_GM = unit_valid_GM & (unit_modality_GM == modality)
    prob_GE = jnp.sum(unit_probs_GME, axis=1, where=mine_GM[..., None])
    total_GE = scope.total(prob_GE)
    tokens_G1 = jnp.maximum(total_GE.sum(axis=-1, keepdims=True), 1e-30)
    log_GE = jnp.log(jnp.maximum(total_GE / tokens_G1, 1e-30))
    loss += jnp.sum(jax.lax.stop_gradient(log_GE) * prob_GE)
  return {
    'router_z': (router_z, tokens),
    'local_entropy': (local, tokens),
    'global_entropy': (loss, tokens),
  }


def entropy(probs_GME: Array) -> Array:
  """Entropy [G, M] of each token's distribution, in nats."""
  log_probs_GME = jnp.log(jnp.maximum(probs_GME, 1e-30))
  return -jnp.sum(probs_GME * log_probs_GME, axis=-1)


def _squared_variation(a_GE: Array) -> Array:
  """Variance divided by squared mean of each row [E]; 0 for a row of zeros."""
  mean_G1 = a_GE.mean(axis=-1, keepdims=True)
  safe_G1 = jnp.where(mean_G1 > 0, mean_G1, 1.0)
  return jnp.mean(jnp.square((a_GE - mean_G1) / safe_G1), axis=-1)


def _weighted_by_tokens(loss_G: Array, valid_GM: Array) -> Pair:
  tokens_G = valid_GM.astype(jnp.float32).sum(axis=1)
  return jnp.sum(loss_G * tokens_G), tokens_G.sum()


def importance_loss(probs_GME: Array, valid_GM: Array) -> Pair:
  """Squared coefficient of variation of the experts' sums of probabilities.

  Shazeer et al. (2017), equation 7, https://arxiv.org/abs/1701.06538. The sums
  are those of a routing group.
  """
  importance_GE = jnp.sum(probs_GME, axis=1, where=valid_GM[..., None])
  return _weighted_by_tokens(_squared_variation(importance_GE), valid_GM)


def noisy_load_loss(
  logits_GME: Array,
  noisy_GME: Array,
  noise_std: float,
  num_active: int,
  valid_GM: Array,
) -> Pair:
  """Squared coefficient of variation of the experts' smooth loads.

  Shazeer et al. (2017), appendix A, as in V-MoE (Riquelme et al., 2021,
  https://arxiv.org/abs/2106.05974, appendix A). A token adds a probability to
  the load of an expert: the probability that new noise lifts the expert's logit
  above the k-th largest noisy logit of the token.

  Args:
    logits_GME: logits without noise.
    noisy_GME: logits with the noise by which experts were chosen.
    noise_std: standard deviation of the noise.
    num_active: k.
    valid_GM: bool, False for padding.
  """
  threshold_GM1 = jax.lax.top_k(noisy_GME, num_active)[0][..., -1:]
  needed_GME = (threshold_GM1 - logits_GME) / noise_std
  chance_GME = jax.scipy.stats.norm.sf(needed_GME)
  load_GE = jnp.sum(chance_GME, axis=1, where=valid_GM[..., None])
  return _weighted_by_tokens(_squared_variation(load_GE), valid_GM)


def signed_bias(bias_E: Array, load_E: Array, rate: float) -> Array:
  """Returns the next bias; it rises for experts with less than the mean load.

  DeepSeek-V3 (2024), section 2.1.2, https://arxiv.org/abs/2412.19437, after
  Wang et al. (2024), algorithm 1, https://arxiv.org/abs/2408.15664.

  Args:
    bias_E: [..., E], the bias of the scores by which experts are chosen.
    load_E: [..., E], number of rows of each expert in the step's whole batch.
    rate: by how much the bias rises or falls.
  """
  mean_load = load_E.mean(axis=-1, keepdims=True)
  return bias_E + rate * jnp.sign(mean_load - load_E)


def choice_statistics(
  probs_GME: Array, expert_GMA: Array, valid_GM: Array
) -> dict[str, Pair]:
  """Statistics of a router's choices, as (sum, weight) pairs over valid tokens.

  Args:
    probs_GME: distribution over experts, float32.
    expert_GMA: int32 choices, the best one first; negative where there is none.
    valid_GM: bool, False for padding.

  Returns:
    load: float32 [E], rows per expert. The weight is the number of all rows, so
      sum / weight is the share of each expert.
    entropy: entropy of the router's distribution, in nats.
    confidence: probability of the first choice.
  """
  tokens = valid_GM.astype(jnp.float32).sum()
  load_E = choice_counts(expert_GMA, valid_GM, probs_GME.shape[-1]).sum(axis=0)
  first_GM1 = jnp.maximum(expert_GMA[..., :1], 0)
  first_GM = jnp.take_along_axis(probs_GME, first_GM1, axis=-1)[..., 0]
  total_entropy = jnp.sum(jnp.where(valid_GM, entropy(probs_GME), 0.0))
  confidence = jnp.sum(jnp.where(valid_GM, first_GM, 0.0))
  return {
    'load': (load_E, load_E.sum()),
    'entropy': (total_entropy, tokens),
    'confidence': (confidence, tokens),
  }
