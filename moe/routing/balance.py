"""Losses that keep the router balanced, and what is reported of its choices."""

import jax
import jax.numpy as jnp

from moe.types import Array, Pair


def load_balance_loss(
  probs_GME: Array, expert_GMA: Array, valid_GM: Array
) -> Pair:
  """Switch load-balance loss of each group, weighted by the group's tokens.

  Fedus et al. (2021), equations 4-6, https://arxiv.org/abs/2101.03961: E times
  the sum over experts of (share of assignments) x (mean router probability).
  Departs from it in counting all A choices of a token, in leaving padding out,
  and in weighting groups by their valid tokens, so that the weight of this term
  is known from the batch alone and accumulation over microbatches is exact.

  Args:
    probs_GME: softmax over experts, float32.
    expert_GMA: chosen experts, int32 in [0, E).
    valid_GM: bool, False for padding.

  Returns:
    (sum, weight), float32 scalars: sum / weight is 1.0 for an even router and
    at most E; weight is the number of valid tokens. Unscaled.

  Raises:
    ValueError: if the arguments disagree on groups or tokens.
  """
  if probs_GME.shape[:2] != expert_GMA.shape[:2]:
    raise ValueError(
      f'probs_GME {probs_GME.shape} and expert_GMA {expert_GMA.shape} must'
      ' agree on groups and tokens: pass both as the router returned them.'
    )
  E = probs_GME.shape[-1]
  valid_GM = valid_GM.astype(jnp.float32)
  tokens_G = valid_GM.sum(axis=1)
  # At least 1, so that a group of padding alone gives 0 and no NaN gradient.
  divisor_G1 = jnp.maximum(tokens_G, 1.0)[:, None]
  chosen_GME = jax.nn.one_hot(expert_GMA, E).mean(axis=2)
  load_GE = jnp.einsum('GME,GM->GE', chosen_GME, valid_GM) / divisor_G1
  mean_prob_GE = jnp.einsum('GME,GM->GE', probs_GME, valid_GM) / divisor_G1
  loss_G = E * jnp.sum(load_GE * mean_prob_GE, axis=-1)
  return jnp.sum(loss_G * tokens_G), tokens_G.sum()


def router_z_loss(logits_GME: Array, valid_GM: Array) -> Pair:
  """Squared log-partition of the router's logits, which keeps them small.

  Zoph et al. (2022), equation 5, https://arxiv.org/abs/2202.08906.

  Returns:
    (sum, weight) over valid tokens, float32 scalars. Unscaled.
  """
  log_z_GM = jax.nn.logsumexp(logits_GME, axis=-1)
  valid_GM = valid_GM.astype(jnp.float32)
  return jnp.sum(jnp.square(log_z_GM) * valid_GM), valid_GM.sum()


def choice_statistics(
  probs_GME: Array, expert_GMA: Array, valid_GM: Array
) -> dict[str, Pair]:
  """What a token-choice router did, as (sum, weight) pairs over valid tokens.

  Returns:
    load: float32 [E], rows per expert; over the number of rows it is a
      histogram.
    entropy: nats of the router's distribution.
    confidence: probability of the first choice.
  """
  E, A = probs_GME.shape[-1], expert_GMA.shape[-1]
  valid_GM = valid_GM.astype(jnp.float32)
  tokens = valid_GM.sum()
  chosen_GME = jax.nn.one_hot(expert_GMA, E).sum(axis=2)
  log_probs_GME = jnp.log(jnp.maximum(probs_GME, 1e-30))
  entropy_GM = -jnp.sum(probs_GME * log_probs_GME, axis=-1)
  first_GM = jnp.take_along_axis(probs_GME, expert_GMA[..., :1], axis=-1)[
    ..., 0
  ]
  return {
    'load': (jnp.einsum('GME,GM->E', chosen_GME, valid_GM), tokens * A),
    'entropy': (jnp.sum(entropy_GM * valid_GM), tokens),
    'confidence': (jnp.sum(first_GM * valid_GM), tokens),
  }
