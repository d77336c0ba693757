"""Numbers that are logged of folded chains, and the score that ranks steps.

None of them is a loss. They show from the first step on whether a chain
collapses, and whether more is learnt than the distances of neighbours.
"""

import jax.numpy as jnp
import numpy as np

from moe.objectives import structure_losses as losses
from moe.objectives.objective import Facts, Measure
from moe.types import Array, Pair

# Residues at least this far apart in the sequence are far.
FAR = 12
# In Angstrom. The CA atoms of neighbours are right between the first two. Two
# other CA atoms clash if they are nearer than the third.
_LEAST_STEP, _MOST_STEP, _CLASH = 3.6, 4.0, 3.0


def _mean_of_both(sums: dict[str, Pair], facts: Facts) -> float:
  del facts
  pairs = (sums['lddt'], sums['lddt_far'])
  return float(np.mean([x / np.maximum(weight, 1e-9) for x, weight in pairs]))


# A straight helix has a high lDDT, and a compact random walk has a fair lDDT of
# far residues; neither has both, so the mean of the two ranks steps.
SCORE = Measure(
  'lddt_mean',
  'mean of lDDT and far lDDT',
  _mean_of_both,
  is_higher_better=True,
)


def metrics(
  numbers: Array, ca: Array, true: Array, known: Array
) -> dict[str, Array]:
  """Numbers [B] of chains by name.

  `lddt` and `lddt_far` are lDDTs of all residues and of far residues. `ca_step`
  is the mean distance in Angstrom between the CA atoms of neighbours, and
  `ca_steps_off` the share of these distances outside 3.6 to 4.0 Angstrom.
  `ca_clashes` is the share of pairs of other CA atoms that clash.
  `mirror_is_worse` is 1 if the mirror image has a larger RMSD, and 0 if not.

  Args:
    numbers: int32 [B, I], places of the residues in the sequence.
    ca: [B, I, 3], predicted CA atoms in Angstrom.
    true: [B, I, 3], true CA atoms.
    known: bool [B, I], whether the true backbone is known.
  """
  step = jnp.sqrt(jnp.sum(jnp.square(ca[:, 1:] - ca[:, :-1]), axis=-1) + 1e-8)
  is_next = known[:, 1:] & known[:, :-1]
  is_next &= numbers[:, 1:] - numbers[:, :-1] == 1
  is_off = (step < _LEAST_STEP) | (step > _MOST_STEP)
  pairs = known[:, :, None] & known[:, None, :]
  pairs &= jnp.abs(numbers[:, :, None] - numbers[:, None, :]) > 1
  is_clash = losses.distances(ca, ca) < _CLASH
  share = lambda x, mask, dims=1: losses.mean(x.astype(ca.dtype), mask, dims)
  return {
    'lddt': losses.lddt(ca, true, known),
    'lddt_far': losses.lddt(ca, true, known, least_separation=FAR),
    'ca_step': losses.mean(step, is_next),
    'ca_steps_off': share(is_off, is_next),
    'ca_clashes': share(is_clash, pairs, 2),
    'mirror_is_worse': (handedness(ca, true, known) > 0).astype(ca.dtype),
  }


def handedness(points: Array, true: Array, mask: Array) -> Array:
  """A number [...] above 0 if the mirror image of points fits worse.

  It is the determinant of the covariance of both sets of points. With the
  singular values a >= b >= c of this matrix, the squared RMSD falls with
  a + b + c if the determinant is positive, and with a + b - c if it is negative
  (Kabsch 1976, https://doi.org/10.1107/S0567739476001873). A mirror changes
  only the sign of the determinant.

  Args:
    points: [..., I, 3].
    true: [..., I, 3].
    mask: bool [..., I].
  """
  weight = mask[..., None].astype(points.dtype)
  count = jnp.maximum(jnp.sum(weight, axis=-2, keepdims=True), 1)

  def centred(x: Array) -> Array:
    middle = jnp.sum(x * weight, axis=-2, keepdims=True) / count
    return (x - middle) * weight

  one, two = centred(points), centred(true)
  rows = jnp.sum(one[..., :, None] * two[..., None, :], axis=-3)
  rows = rows / count
  a, b, c = rows[..., 0, :], rows[..., 1, :], rows[..., 2, :]
  return jnp.sum(a * jnp.cross(b, c), axis=-1)
