"""A rule that finds steps whose gradient is far larger than those before.

The rule is that of OLMo's SkipStepOptimizer
(https://github.com/allenai/OLMo-core): a step whose gradient norm lies several
standard deviations above the mean does not change the parameters. We keep
running averages in place of a window of norms. So the state is three numbers,
which checkpoints hold, and a resumed run skips the same steps.
"""

from typing import NamedTuple

import jax.numpy as jnp

from moe.types import Array

# The averages reach over this many steps. No step counts as a spike until the
# averages include this many norms.
WINDOW = 128


class Norms(NamedTuple):
  """Running statistics of the gradient norms, float32 scalars.

  Attributes:
    count: number of norms so far.
    mean: their average.
    variance: their variance.
  """

  count: Array
  mean: Array
  variance: Array


def start() -> Norms:
  """The statistics before the first step."""
  zero = jnp.zeros((), jnp.float32)
  return Norms(zero, zero, zero)


def judge(
  norms: Norms, norm: Array, deviations: float
) -> tuple[Array, Array, Norms]:
  """Compares the gradient norm of a step with those of the steps before it.

  A norm above the limit enters the averages as if it were at the limit. So one
  spike hardly moves them. If all norms become larger, the limit soon follows.

  Args:
    norms: statistics of the steps before.
    norm: norm of this step; one that is not finite leaves the statistics as
      they are.
    deviations: standard deviations above the mean at which the limit lies.

  Returns:
    (whether the norm is a spike, the limit, the new statistics). The limit is
    infinite until `norms` has WINDOW norms.
  """
  is_known = norms.count >= WINDOW
  limit = norms.mean + deviations * jnp.sqrt(norms.variance)
  limit = jnp.where(is_known, limit, jnp.inf)
  is_finite = jnp.isfinite(norm)
  is_spike = is_finite & (norm > limit)
  # Welford's update; the first WINDOW norms have equal weights.
  weight = 1.0 / jnp.minimum(norms.count + 1.0, float(WINDOW))
  delta = jnp.minimum(norm, limit) - norms.mean
  new = Norms(
    norms.count + 1.0,
    norms.mean + weight * delta,
    (1.0 - weight) * (norms.variance + weight * jnp.square(delta)),
  )
  kept = Norms(
    *(jnp.where(is_finite, n, o) for n, o in zip(new, norms, strict=True))
  )
  return is_spike, limit, kept
