"""Losses of predicted structures, as pure functions of float32 coordinates.

The algorithms and supplements that are named below are of Jumper et al. (2021),
https://doi.org/10.1038/s41586-021-03819-2. The smooth lDDT follows Abramson et
al. (2024), Algorithm 27, https://doi.org/10.1038/s41586-024-07487-w. Arrays may
have any leading dims, such as one for chains; a loss returns a number for each
index of these dims. Coordinates are multiplied and summed explicitly, not by
matrix products, which may round them to bfloat16.
"""

import jax
import jax.numpy as jnp

from moe.modalities import residues
from moe.modalities.rigid import Rigid
from moe.types import Array

CUTOFF = 15.0  # Angstrom: lDDT compares true distances below this.
_THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
# The first and the last edge of the distogram's bins, in Angstrom.
DISTANCE_EDGES = (2.3125, 21.6875)


def mean(x: Array, mask: Array, num_dims: int = 1) -> Array:
  """Mean, over the last dims, of values with a True mask; 0 if none has one."""
  dims = tuple(range(-num_dims, 0))
  mask = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
  total = jnp.sum(jnp.where(mask > 0, x, 0) * mask, axis=dims)
  return total / jnp.maximum(jnp.sum(mask, axis=dims), 1e-6)


def distances(a: Array, b: Array, epsilon: float = 1e-8) -> Array:
  """Distances [..., I, J] between points [..., I, 3] and [..., J, 3]."""
  apart = jnp.square(a[..., :, None, :] - b[..., None, :, :])
  return jnp.sqrt(jnp.sum(apart, axis=-1) + epsilon)


def fape(
  frames: tuple[Rigid, Rigid],
  frame_mask: Array,
  points: tuple[Array, Array],
  point_mask: Array,
  is_clamped: Array | bool = True,
  epsilon: float = 1e-4,
) -> Array:
  """Frame aligned point error (Algorithm 28), in units of 10 Angstrom.

  Args:
    frames: predicted and true frames, [..., F].
    frame_mask: bool [..., F].
    points: predicted and true points, [..., P, 3], in Angstrom.
    point_mask: bool [..., P].
    is_clamped: bool [...], whether an error above 10 Angstrom counts as 10.
    epsilon: added to squared errors, since the root has no gradient at 0.
  """
  place = lambda f, x: f.expand(1).apply_inverse(x[..., None, :, :])
  local, true = (place(f, x) for f, x in zip(frames, points, strict=True))
  error = jnp.sqrt(jnp.sum(jnp.square(local - true), axis=-1) + epsilon)
  is_clamped = jnp.asarray(is_clamped)[..., None, None]
  error = jnp.where(is_clamped, jnp.minimum(error, 10), error) / 10
  return mean(error, frame_mask[..., :, None] & point_mask[..., None, :], 2)


def _near(true: Array, mask: Array, least_separation: int = 1) -> Array:
  """Bool [..., I, J]: whether lDDT compares the distance of a pair."""
  size = true.shape[-2]
  apart = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size))
  pairs = mask[..., :, None] & mask[..., None, :]
  return pairs & (distances(true, true) < CUTOFF) & (apart >= least_separation)


def _kept(points: Array, true: Array) -> Array:
  """Share [..., I, J] of the four thresholds that exceed a distance's error."""
  error = jnp.abs(distances(points, points) - distances(true, true))
  return sum((error < t).astype(points.dtype) for t in _THRESHOLDS) / 4


def lddt_by_residue(
  points: Array, true: Array, mask: Array
) -> tuple[Array, Array]:
  """The lDDT of each point, from 0 to 1 (Mariani et al. 2013).

  Args:
    points: [..., I, 3], predicted.
    true: [..., I, 3].
    mask: bool [..., I].

  Returns:
    (lDDT, float [..., I]; whether it is defined, bool [..., I]). A point
    without another point within `CUTOFF` gets 1 and False.
  """
  near = _near(true, mask)
  count = jnp.sum(near, axis=-1, dtype=points.dtype)
  total = jnp.sum(jnp.where(near, _kept(points, true), 0), axis=-1)
  has_any = count > 0
  return jnp.where(has_any, total / jnp.maximum(count, 1), 1), has_any


def lddt(
  points: Array, true: Array, mask: Array, least_separation: int = 1
) -> Array:
  """The lDDT over all pairs of points of a chain, from 0 to 1.

  Args:
    points: [..., I, 3], predicted.
    true: [..., I, 3].
    mask: bool [..., I].
    least_separation: pairs with a smaller difference of indices are left out.
  """
  return mean(_kept(points, true), _near(true, mask, least_separation), 2)


def smooth_lddt(points: Array, true: Array, mask: Array) -> Array:
  """1 - lDDT of a chain, with sigmoids instead of thresholds.

  Thresholds have no gradient. The arguments are those of `lddt_by_residue`.
  """
  error = jnp.abs(distances(points, points) - distances(true, true))
  kept = sum(jax.nn.sigmoid(t - error) for t in _THRESHOLDS) / 4
  return 1 - mean(kept, _near(true, mask), 2)


def local_distances(
  atoms: Array, true: Array, mask: Array, numbers: Array, window: int = 4
) -> Array:
  """Mean error in Angstrom of distances between backbone atoms.

  Only atoms of residues that are close in the sequence are compared. An error
  above 10 Angstrom counts as 10. FAPE over a whole chain hardly prevents that
  neighbours collapse; this loss keeps them apart.

  Args:
    atoms: [..., I, P, 3], predicted; the first atoms are N, CA and C.
    true: true atoms, in the same form.
    mask: bool [..., I, P].
    numbers: int32 [..., I], places of the residues in the sequence.
    window: largest difference of the places of two residues that are compared.
  """
  lead = atoms.shape[:-3]
  flat = lambda x: x[..., :3, :].reshape(*lead, -1, 3)
  known = mask[..., :3].reshape(*lead, -1)
  place = jnp.repeat(numbers, 3, axis=-1)
  apart = jnp.abs(place[..., :, None] - place[..., None, :])
  pairs = known[..., :, None] & known[..., None, :]
  pairs &= (apart >= 1) & (apart <= window)
  one, two = flat(atoms), flat(true)
  error = jnp.abs(distances(one, one) - distances(two, two))
  return mean(jnp.minimum(error, 10), pairs, 2)


def bins(distance: Array, num_bins: int) -> Array:
  """Int32 bin of each distance; the first and the last bin are unbounded."""
  edges = jnp.linspace(*DISTANCE_EDGES, num_bins - 1, dtype=distance.dtype)
  return jnp.sum(distance[..., None] > edges, axis=-1, dtype=jnp.int32)


def cross_entropy(logits: Array, target: Array) -> Array:
  """Cross-entropy [...] in nats of logits [..., bins] at target bins [...]."""
  chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def distogram(logits: Array, points: Array, mask: Array) -> Array:
  """Mean cross-entropy [...] of binned distances (supplement 1.9.8).

  Args:
    logits: [..., I, J, bins].
    points: [..., I, 3], true CB atoms.
    mask: bool [..., I].
  """
  target = bins(distances(points, points), logits.shape[-1])
  pairs = mask[..., :, None] & mask[..., None, :]
  return mean(cross_entropy(logits, target), pairs, 2)


def torsion(
  predicted: Array, true: Array, other: Array, mask: Array
) -> tuple[Array, Array]:
  """Losses of torsion angles (AlphaFold 2, Algorithm 27).

  The first loss is the squared error of the (cos, sin) vectors, normalised to
  length 1. It counts the distance to `true` or `other`, whichever is nearer.
  The second loss is the difference between 1 and the length of each vector
  before it is normalised. Both are means over the angles of a chain.

  Args:
    predicted: [..., I, 7, 2], (cos, sin) before they are normalised.
    true: [..., I, 7, 2].
    other: true angles after the names of symmetric atoms are swapped.
    mask: bool [..., I, 7].
  """
  length = jnp.sqrt(jnp.sum(jnp.square(predicted), axis=-1) + 1e-6)
  made = predicted / length[..., None]
  error = lambda x: jnp.sum(jnp.square(made - x), axis=-1)
  least = jnp.minimum(error(true), error(other))
  off = jnp.abs(length - 1)
  # Lengths count for all seven angles of a residue with a known angle.
  is_there = mask.any(axis=-1, keepdims=True)
  return mean(least, mask, 2), mean(off, is_there, 2)


def renamed(
  codes: Array, atoms: Array, true: Array, mask: Array
) -> tuple[Array, Array]:
  """Swaps names of symmetric true atoms to suit the prediction (Algorithm 26).

  In each residue, the names of symmetric atoms are swapped if this reduces the
  error of the predicted distances from these atoms to the atoms of the chain
  that have no symmetric twin.

  Args:
    codes: int32 [..., I].
    atoms: [..., I, 14, 3], predicted.
    true: [..., I, 14, 3].
    mask: bool [..., I, 14].

  Returns:
    (true atoms, their mask).
  """
  swap = jnp.asarray(residues.residues().swap)[codes]
  swapped = jnp.take_along_axis(true, swap[..., None], axis=-2)
  swapped_mask = jnp.take_along_axis(mask, swap, axis=-1)
  is_named = swap == jnp.arange(residues.ATOM14)
  lead, size = codes.shape[:-1], codes.shape[-1] * residues.ATOM14
  flat = lambda x: x.reshape(*lead, size, *x.shape[len(lead) + 2 :])
  pairs = (
    flat(mask & swapped_mask & ~is_named)[..., :, None]
    & flat(mask & is_named)[..., None, :]
  )
  predicted = distances(flat(atoms), flat(atoms))

  def error(x: Array) -> Array:
    off = jnp.abs(predicted - distances(flat(x), flat(true)))
    by_atom = jnp.sum(jnp.where(pairs, off, 0), axis=-1)
    return by_atom.reshape(*codes.shape, residues.ATOM14).sum(axis=-1)

  better = (error(swapped) < error(true))[..., None]
  return (
    jnp.where(better[..., None], swapped, true),
    jnp.where(better, swapped_mask, mask),
  )


def plddt_targets(score: Array, num_bins: int) -> Array:
  """Int32 bin of an lDDT from 0 to 1."""
  return jnp.clip((score * num_bins).astype(jnp.int32), 0, num_bins - 1)


def expected_plddt(logits: Array) -> Array:
  """Expected lDDT [...] from 0 to 1 of logits [..., bins] (Algorithm 29)."""
  size = logits.shape[-1]
  centres = (jnp.arange(size, dtype=logits.dtype) + 0.5) / size
  return jnp.sum(jax.nn.softmax(logits, axis=-1) * centres, axis=-1)


ERROR_STEP = 0.5  # Angstrom, the width of a bin of aligned errors.


def aligned_errors(
  frames: tuple[Rigid, Rigid], points: tuple[Array, Array]
) -> Array:
  """Errors [..., I, J] in Angstrom of point j in the frame of residue i."""
  place = lambda f, x: f.expand(1).apply_inverse(x[..., None, :, :])
  local, true = (place(f, x) for f, x in zip(frames, points, strict=True))
  return jnp.sqrt(jnp.sum(jnp.square(local - true), axis=-1) + 1e-8)


def error_bins(error: Array, num_bins: int) -> Array:
  """Int32 bin of each aligned error; the last bin is unbounded."""
  return jnp.clip((error / ERROR_STEP).astype(jnp.int32), 0, num_bins - 1)


def expected_errors(logits: Array) -> Array:
  """Expected aligned errors [...] in Angstrom of logits [..., bins]."""
  size = logits.shape[-1]
  centres = (jnp.arange(size, dtype=logits.dtype) + 0.5) * ERROR_STEP
  return jnp.sum(jax.nn.softmax(logits, axis=-1) * centres, axis=-1)


def tm_scale(length: Array) -> Array:
  """d0 of the TM-score, in Angstrom, by length (Zhang and Skolnick 2004)."""
  length = jnp.maximum(length, 19)
  return 1.24 * jnp.cbrt(length - 15.0) - 1.8


def expected_tm(logits: Array, mask: Array) -> Array:
  """TM-score [...] that logits [..., I, J, bins] of aligned errors predict."""
  size = logits.shape[-1]
  centres = (jnp.arange(size, dtype=logits.dtype) + 0.5) * ERROR_STEP
  count = jnp.sum(mask, axis=-1, dtype=logits.dtype)
  scale = tm_scale(count)[..., None]
  near = 1 / (1 + jnp.square(centres / scale))
  weights = jax.nn.softmax(logits, axis=-1) * near[..., None, None, :]
  by_frame = mean(jnp.sum(weights, axis=-1), mask[..., None, :])
  return jnp.max(jnp.where(mask, by_frame, 0), axis=-1)
