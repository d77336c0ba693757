"""Rigid motions of space: rotations, frames of residues, places of atoms.

All products are sums of elementwise products in the dtype of the operands. A
matrix unit would round coordinates to bfloat16 or TF32, by up to an Angstrom.
"""

from typing import NamedTuple

import jax.numpy as jnp

from moe.types import Array

# Lower bound of a squared length: the gradient of its root is infinite at 0.
_TINY = 1e-16


class Rigid(NamedTuple):
  """The motion x -> rotation x + translation; arrays may have leading dims.

  Attributes:
    rotation: [..., 3, 3], orthogonal with determinant 1.
    translation: [..., 3].
  """

  rotation: Array
  translation: Array

  def apply(self, x: Array) -> Array:
    """Converts points [..., 3] from the frame's coordinates to outer ones."""
    return turn(self.rotation, x) + self.translation

  def apply_inverse(self, x: Array) -> Array:
    """Converts points [..., 3] from outer coordinates to the frame's."""
    transposed = jnp.swapaxes(self.rotation, -1, -2)
    return turn(transposed, x - self.translation)

  def compose(self, inner: 'Rigid') -> 'Rigid':
    """The motion that does `inner` first and then this one."""
    columns = jnp.swapaxes(inner.rotation, -1, -2)
    turned = turn(self.rotation[..., None, :, :], columns)
    return Rigid(jnp.swapaxes(turned, -1, -2), self.apply(inner.translation))

  def inverse(self) -> 'Rigid':
    """The motion that undoes this one."""
    transposed = jnp.swapaxes(self.rotation, -1, -2)
    return Rigid(transposed, -turn(transposed, self.translation))

  def expand(self, num_dims: int = 1) -> 'Rigid':
    """The same motion with `num_dims` dims of size 1 after the leading dims.

    It then broadcasts over sets of points.
    """
    ones = (1,) * num_dims
    lead = self.translation.shape[:-1]
    return Rigid(
      self.rotation.reshape(*lead, *ones, 3, 3),
      self.translation.reshape(*lead, *ones, 3),
    )

  def at(self, index: int) -> 'Rigid':
    """The motion at an index of the last leading dim."""
    return Rigid(
      self.rotation[..., index, :, :], self.translation[..., index, :]
    )


def turn(rotation: Array, x: Array) -> Array:
  """Product of matrices [..., 3, 3] and vectors [..., 3]."""
  return jnp.sum(rotation * x[..., None, :], axis=-1)


def identity(shape: tuple[int, ...], dtype: jnp.dtype) -> Rigid:
  """The motion that moves nothing, with the leading dims `shape`."""
  rotation = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (*shape, 3, 3))
  return Rigid(rotation, jnp.zeros((*shape, 3), dtype))


def unit(x: Array) -> Array:
  """Vectors of length 1 in the direction of `x`; 0 for a vector of 0."""
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(squared, _TINY))


def from_vectors(x: Array, xy: Array, origin: Array) -> Rigid:
  """Frames from vectors along x and in the xy plane, by Gram-Schmidt.

  Algorithm 21 of Jumper et al. (2021), supplement,
  https://doi.org/10.1038/s41586-021-03819-2, but with vectors as arguments
  instead of points.
  """
  e1 = unit(x)
  e2 = unit(xy - e1 * jnp.sum(e1 * xy, axis=-1, keepdims=True))
  return Rigid(jnp.stack([e1, e2, jnp.cross(e1, e2)], axis=-1), origin)


def from_backbone(n: Array, ca: Array, c: Array) -> Rigid:
  """Frames of residues, from coordinates [..., 3] of their atoms.

  CA is at the origin, C on the positive x axis, and N in the xy plane at y > 0.
  """
  return from_vectors(c - ca, n - ca, ca)


def multiply_quaternions(p: Array, q: Array) -> Array:
  """Product p q [..., 4] of quaternions, real part first; q rotates first."""
  p, v = p[..., :1], p[..., 1:]
  q, w = q[..., :1], q[..., 1:]
  real = p * q - jnp.sum(v * w, axis=-1, keepdims=True)
  return jnp.concatenate([real, p * w + q * v + jnp.cross(v, w)], axis=-1)


def from_quaternion(quaternion: Array) -> Array:
  """Rotations [..., 3, 3] of quaternions [..., 4] of any length but 0."""
  a, b, c, d = jnp.moveaxis(unit(quaternion), -1, 0)
  rows = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
  ]
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def from_update(update: Array) -> Rigid:
  """The motion of a backbone update [..., 6]; an update of zeros moves nothing.

  Algorithm 23 of Jumper et al. (2021): the first three numbers are b, c, d of
  the quaternion (1, b, c, d), the others the translation.
  """
  ones = jnp.ones_like(update[..., :1])
  quaternion = jnp.concatenate([ones, update[..., :3]], axis=-1)
  return Rigid(from_quaternion(quaternion), update[..., 3:])


def about_x(torsion: Array) -> Array:
  """Rotations about x by angles that are given as (cos, sin) [..., 2]."""
  cos, sin = torsion[..., 0], torsion[..., 1]
  zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
  rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def group_frames(backbone: Rigid, torsion: Array, default: Rigid) -> Rigid:
  """Frames of the rigid groups of residues (Jumper et al. 2021, Algorithm 24).

  Args:
    backbone: [...], frames of the residues.
    torsion: [..., 7, 2], (cos, sin) of omega, phi, psi and four chi angles, of
      any length but 0.
    default: [..., 8], frames of the groups if all torsions are 0, see
      `moe.modalities.residues`. Each of the last three is given in the frame of
      the group before it.

  Returns:
    [..., 8], frames in the outer coordinates.
  """
  still = jnp.broadcast_to(
    jnp.array([1, 0], torsion.dtype), (*torsion.shape[:-2], 1, 2)
  )
  angles = jnp.concatenate([still, unit(torsion)], axis=-2)
  turned = default.compose(
    Rigid(about_x(angles), jnp.zeros_like(default.translation))
  )
  frames = [backbone.compose(turned.at(group)) for group in range(5)]
  for group in range(5, 8):
    frames.append(frames[-1].compose(turned.at(group)))
  rotations, translations = zip(*frames, strict=True)
  return Rigid(jnp.stack(rotations, axis=-3), jnp.stack(translations, axis=-2))


def place_atoms(frames: Rigid, group: Array, local: Array) -> Array:
  """Coordinates [..., P, 3] of atoms from the frames of their groups.

  Args:
    frames: [..., 8], frames of the rigid groups.
    group: int32 [..., P], group of each atom.
    local: [..., P, 3], coordinates of each atom in the frame of its group.
  """
  rotation = jnp.take_along_axis(
    frames.rotation, group[..., None, None], axis=-3
  )
  translation = jnp.take_along_axis(
    frames.translation, group[..., None], axis=-2
  )
  return Rigid(rotation, translation).apply(local)
