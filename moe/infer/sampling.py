"""Draws the next token from logits, by mask, temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp

from moe.types import Array

# Below this temperature we take the likeliest token, because the logits divided
# by a tiny temperature can overflow float32.
SMALLEST_TEMPERATURE = 1e-6


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of sampling; the defaults keep the model's distribution unchanged.

  Barred tokens are removed first. Then come temperature, top-k and top-p.

  Attributes:
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: only the k likeliest tokens can be drawn; 0 for all.
    top_p: nucleus sampling (Holtzman et al. 2020,
      https://arxiv.org/abs/1904.09751). Only the likeliest tokens can be drawn:
      the fewest with a total probability of at least top_p; 1 for all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(
        f'temperature={self.temperature} must be 0 or a positive number: '
        'use 0 for the likeliest token, 1 for the model as it is.'
      )
    if self.top_k < 0:
      raise ValueError(
        f'top_k={self.top_k} must not be negative: use 0 for all tokens.'
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(
        f'top_p={self.top_p} must be above 0 and at most 1: use 1 for all '
        'tokens.'
      )


def next_token_logits(
  logits_BV: Array, sampling: Sampling, allowed_BV: Array | None = None
) -> Array:
  """Logits of the distribution from which `draw` takes tokens.

  Args:
    logits_BV: float32.
    sampling: temperature, top-k, top-p.
    allowed_BV: bool, False where a token is barred; at least one True per row.

  Returns:
    float32 [B, V], -inf where a token cannot be drawn. If two tokens have equal
    logits, the smaller id ranks first. So top-k keeps exactly k tokens.
  """
  if allowed_BV is not None:
    logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
  vocab_size = logits_BV.shape[-1]
  if sampling.temperature < SMALLEST_TEMPERATURE:
    best_B = jnp.argmax(logits_BV, axis=-1)
    is_best_BV = jnp.arange(vocab_size) == best_B[:, None]
    return jnp.where(is_best_BV, 0.0, -jnp.inf)
  logits_BV = logits_BV / sampling.temperature
  if not 0 < sampling.top_k < vocab_size and sampling.top_p == 1:
    return logits_BV
  order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
  ranked_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
  if 0 < sampling.top_k < vocab_size:
    is_top_V = jnp.arange(vocab_size) < sampling.top_k
    ranked_BV = jnp.where(is_top_V, ranked_BV, -jnp.inf)
  probs_BV = jax.nn.softmax(ranked_BV, axis=-1)
  # A token can be drawn if the probabilities of all likelier tokens sum to less
  # than top_p. So the likeliest token can always be drawn.
  before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
  ranked_BV = jnp.where(before_BV < sampling.top_p, ranked_BV, -jnp.inf)
  rank_BV = jnp.argsort(order_BV, axis=-1)
  return jnp.take_along_axis(ranked_BV, rank_BV, axis=-1)


def draw(
  key_B: Array,
  logits_BV: Array,
  sampling: Sampling,
  allowed_BV: Array | None = None,
) -> Array:
  """Draws one token per row, int32 [B]; each row has its own key.

  Args:
    key_B: typed PRNG keys, one per row, so that the draw of a row depends only
      on its own key and logits.
    logits_BV: float32.
    sampling: temperature, top-k, top-p.
    allowed_BV: bool, False where a token is barred; at least one True per row.
  """
  logits_BV = next_token_logits(logits_BV, sampling, allowed_BV)
  return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
