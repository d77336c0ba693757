"""Torsions and frames of known atoms, as a structure module predicts them.

Torsions are omega, phi, psi and four chi angles, each as (cos, sin), see
Jumper et al. (2021), supplement 1.8.4,
https://doi.org/10.1038/s41586-021-03819-2.
"""

import jax.numpy as jnp

from moe.modalities import residues, rigid
from moe.modalities.rigid import Rigid
from moe.types import Array

NUM_TORSIONS = 7


def torsions(
  codes_I: Array, numbers_I: Array, atoms_IP: Array, mask_IP: Array
) -> tuple[Array, Array]:
  """The torsions of residues, with any leading dims.

  Args:
    codes_I: int32 [..., I].
    numbers_I: int32 [..., I], places in the sequence. They say which residues
      are neighbours.
    atoms_IP: [..., I, 14, 3].
    mask_IP: bool [..., I, 14].

  Returns:
    (torsions [..., I, 7, 2] as (cos, sin); bool [..., I, 7], whether each
    torsion is known).
  """
  before = lambda x: jnp.roll(x, 1, axis=-3)
  after = lambda x: jnp.roll(x, -1, axis=-3)
  known = lambda slots: mask_IP[..., slots].all(axis=-1)
  is_next = _is_next(numbers_I)
  last = jnp.roll(is_next, 1, axis=-1)  # Whether a residue has a previous one.
  n, ca, c, o = (atoms_IP[..., slot, :] for slot in range(4))
  earlier, later = before(atoms_IP), after(atoms_IP)
  known_before = jnp.roll(mask_IP, 1, axis=-2)
  known_after = jnp.roll(mask_IP, -1, axis=-2)
  # The oxygen is opposite to the next N, so its torsion differs from psi by pi.
  # If a file lacks the oxygen, we use the next N.
  next_n = later[..., 0, :]
  has_next_n = is_next & known_after[..., 0]
  has_o = mask_IP[..., 3]
  psi = jnp.where(
    has_o[..., None],
    -dihedral(n, ca, c, o),
    dihedral(n, ca, c, next_n),
  )
  found = [
    dihedral(earlier[..., 1, :], earlier[..., 2, :], n, ca),
    dihedral(earlier[..., 2, :], n, ca, c),
    psi,
  ]
  backbone = known(slice(3))
  masks = [
    last & known_before[..., 1] & known_before[..., 2] & known(slice(2)),
    last & known_before[..., 2] & backbone,
    backbone & (has_o | has_next_n),
  ]
  tables = residues.residues()
  for k in range(4):
    slots = jnp.asarray(tables.chi)[codes_I, k]
    four = jnp.take_along_axis(atoms_IP, slots[..., None], axis=-2)
    there = jnp.take_along_axis(mask_IP, slots, axis=-1).all(axis=-1)
    found.append(dihedral(*jnp.moveaxis(four, -2, 0)))
    masks.append(there & jnp.asarray(tables.has_chi)[codes_I, k])
  return jnp.stack(found, axis=-2), jnp.stack(masks, axis=-1)


def _is_next(numbers_I: Array) -> Array:
  """Bool [..., I], whether the next row is the next residue."""
  step = jnp.roll(numbers_I, -1, axis=-1) - numbers_I
  return (step == 1).at[..., -1].set(False)


def dihedral(a: Array, b: Array, c: Array, d: Array) -> Array:
  """(cos, sin) [..., 2] of the torsion angle a-b-c-d, with IUPAC's sign."""
  frames = rigid.from_vectors(c - b, a - b, c)
  local = frames.apply_inverse(d)[..., 1:]
  return rigid.unit(local)


def other_torsions(codes_I: Array, torsion: Array) -> Array:
  """Turns each chi angle by pi if this gives the same atoms; see `residues`."""
  turns = jnp.asarray(residues.residues().is_pi_periodic)[codes_I]
  sign = jnp.where(turns, -1, 1).astype(torsion.dtype)
  still = jnp.ones((*sign.shape[:-1], NUM_TORSIONS - 4), torsion.dtype)
  return torsion * jnp.concatenate([still, sign], axis=-1)[..., None]


def all_atoms(
  codes_I: Array, backbone: Rigid, torsion: Array
) -> tuple[Array, Rigid]:
  """All heavy atoms of residues (Jumper et al. 2021, Algorithm 24).

  Args:
    codes_I: int32 [..., I]; an unknown residue gets its backbone alone.
    backbone: [..., I], frames of the residues.
    torsion: [..., I, 7, 2], (cos, sin) of any length but 0.

  Returns:
    (atoms [..., I, 14, 3], 0 in empty slots; frames [..., I, 8] of the groups).
  """
  tables = residues.residues()
  dtype = torsion.dtype
  # An unknown residue gets the atoms of glycine, which are the backbone.
  glycine = int(residues.codes('G')[0])
  codes_I = jnp.where(codes_I == residues.UNKNOWN, glycine, codes_I)
  whole = jnp.asarray(tables.frames, dtype)[codes_I]
  default = Rigid(whole[..., :3, :3], whole[..., :3, 3])
  frames = rigid.group_frames(backbone, torsion, default)
  atoms = rigid.place_atoms(
    frames,
    jnp.asarray(tables.group)[codes_I],
    jnp.asarray(tables.local, dtype)[codes_I],
  )
  return atoms * jnp.asarray(tables.mask, dtype)[codes_I][..., None], frames


def ideal_cb(atoms_IP: Array) -> Array:
  """CB [..., I, 3] of every residue, computed from its backbone.

  Glycine has no CB, and files may lack it. So all residues get the CB of
  alanine.
  """
  frames = rigid.from_backbone(*jnp.moveaxis(atoms_IP[..., :3, :], -2, 0))
  local = residues.residues().local[residues.codes('A')[0], 4]
  return frames.apply(jnp.asarray(local, atoms_IP.dtype))
