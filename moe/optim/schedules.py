"""Learning-rate schedules: a linear warm-up, then a decay."""

import jax.numpy as jnp
import optax

from moe import bounds
from moe.types import Array


def _check(
  learning_rate: float,
  warmup_steps: int,
  train_steps: int,
  final_fraction: float = 0.0,
) -> None:
  """Raises ValueError for a number of a schedule that is out of range."""
  bounds.within('learning_rate', learning_rate, 'the peak', least=0)
  bounds.at_least(1, 'train_steps', train_steps, 'steps of the whole run')
  bounds.at_least(0, 'warmup_steps', warmup_steps, '0 for no warm-up')
  if warmup_steps > train_steps:
    raise bounds.OutOfRange(
      'warmup_steps',
      warmup_steps,
      f'must be at most TRAIN_STEPS={train_steps}, the steps of the whole run:'
      ' shorten the warm-up, or train longer.',
    )
  share = 'the last learning rate over the peak'
  bounds.within('final_fraction', final_fraction, share, least=0, most=1)


def _warm(warmup_steps: int, after: optax.Schedule) -> optax.Schedule:
  """Multiplies the schedule `after` by a linear warm-up from step 0 on."""

  def schedule(step: Array) -> Array:
    step = jnp.asarray(step, jnp.float32)
    # `step + 1` gives the first update a rate above 0.
    ramp = jnp.minimum(1.0, (step + 1.0) / max(1, warmup_steps))
    return ramp * after(step)

  return schedule


def rsqrt(
  learning_rate: float, warmup_steps: int, train_steps: int
) -> optax.Schedule:
  """Falls like 1 / sqrt(step) after the warm-up (T5, Raffel et al. 2020)."""
  _check(learning_rate, warmup_steps, train_steps)
  first = float(max(1, warmup_steps))
  return _warm(
    warmup_steps,
    lambda step: learning_rate * jnp.sqrt(first / jnp.maximum(step + 1, first)),
  )


def cosine(
  learning_rate: float,
  warmup_steps: int,
  train_steps: int,
  final_fraction: float = 0.1,
) -> optax.Schedule:
  """Falls from the peak to `final_fraction` of the peak along half a cosine."""
  _check(learning_rate, warmup_steps, train_steps, final_fraction)
  span = float(max(1, train_steps - warmup_steps))

  def after(step: Array) -> Array:
    done = jnp.clip((step - warmup_steps) / span, 0.0, 1.0)
    height = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return learning_rate * (final_fraction + (1.0 - final_fraction) * height)

  return _warm(warmup_steps, after)


def wsd(
  learning_rate: float,
  warmup_steps: int,
  train_steps: int,
  decay_fraction: float = 0.3,
  final_fraction: float = 0.0,
) -> optax.Schedule:
  """Warm-up, then a constant rate, then a linear decay until the last step.

  The schedule is from Hu et al. (2024), https://arxiv.org/abs/2404.06395; the
  linear decay is from Hägele et al. (2024), https://arxiv.org/abs/2405.18392.
  """
  _check(learning_rate, warmup_steps, train_steps, final_fraction)
  part = 'the last part of the run, in which the learning rate falls'
  bounds.within('decay_fraction', decay_fraction, part, above=0, most=1)
  span = decay_fraction * train_steps

  def after(step: Array) -> Array:
    left = jnp.clip((train_steps - step) / span, 0.0, 1.0)
    return learning_rate * (final_fraction + (1.0 - final_fraction) * left)

  return _warm(warmup_steps, after)
