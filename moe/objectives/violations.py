"""Violations of geometry: wrong peptide bonds, and atoms that clash.

Jumper et al. (2021), supplement 1.9.11,
https://doi.org/10.1038/s41586-021-03819-2. Their bonds may be wrong by 12
standard deviations, and their CA atoms clash below 1.9 Angstrom. So
`neighbour_errors` and `crowding` are stricter.
"""

import jax
import jax.numpy as jnp

from moe.modalities import residues
from moe.objectives.structure_losses import distances, mean
from moe.types import Array, Batch

# (value, standard deviation) of peptide bonds after Engh and Huber (1991): the
# length of C-N in Angstrom, its length before proline, and the cosines of the
# angles CA-C-N and C-N-CA.
_BOND, _BOND_PROLINE = (1.329, 0.014), (1.341, 0.016)
_CA_C_N, _C_N_CA = (-0.4473, 0.0311), (-0.5203, 0.0353)
_PROLINE, _GLYCINE = (residues.LETTERS.index(x) for x in 'PG')
# Distance in Angstrom between the CA atoms of neighbours across a trans bond.
# It is the mean of the training chains, in which 0.2% of the bonds are cis.
_CA_CA = 3.807
# In Angstrom. In the training chains, one in 2,500 CA atoms is nearer than this
# to a CA atom that is not of a neighbour.
LEAST_CA = 3.6


def _length(a: Array, b: Array) -> Array:
  """Distances [...] of points [..., 3], with a finite gradient at 0."""
  return jnp.sqrt(1e-6 + jnp.sum(jnp.square(a - b), axis=-1))


def _peptide_bonds(codes: Array) -> tuple[Array, Array]:
  """(length of C-N, its standard deviation) of each bond, [..., I - 1]."""
  is_proline = codes[..., 1:] == _PROLINE
  values = zip(_BOND_PROLINE, _BOND, strict=True)
  return tuple(jnp.where(is_proline, one, other) for one, other in values)


def bond_violations(
  codes: Array, numbers: Array, atoms: Array, mask: Array, tolerance: float = 12
) -> tuple[Array, Array]:
  """Finds peptide bonds with a wrong length or a wrong angle.

  Args:
    codes: int32 [..., I].
    numbers: int32 [..., I], places in the sequence.
    atoms: [..., I, P, 3] in Angstrom; the first atoms are N, CA and C.
    mask: bool [..., I, P].
    tolerance: number of standard deviations below which an error is ignored.

  Returns:
    (loss of each residue [..., I], which is half the sum over its two peptide
    bonds; bool [..., I], whether one of these bonds is violated).
  """
  ca, c = atoms[..., :-1, 1, :], atoms[..., :-1, 2, :]
  n, next_ca = atoms[..., 1:, 0, :], atoms[..., 1:, 1, :]
  is_bound = numbers[..., 1:] - numbers[..., :-1] == 1
  is_bound &= mask[..., :-1, 2] & mask[..., 1:, 0]
  ca_c, c_n, n_ca = _length(ca, c), _length(c, n), _length(n, next_ca)
  toward = lambda a, b, size: (b - a) / size[..., None]
  back = toward(c, ca, ca_c)
  bond = toward(c, n, c_n)
  ahead = toward(n, next_ca, n_ca)
  cosine_c = jnp.sum(back * bond, axis=-1)
  cosine_n = -jnp.sum(bond * ahead, axis=-1)
  total, broken = jnp.zeros_like(c_n), jnp.zeros_like(is_bound)
  for found, wanted, spread, known in (
    (c_n, *_peptide_bonds(codes), is_bound),
    (cosine_c, *_CA_C_N, is_bound & mask[..., :-1, 1]),
    (cosine_n, *_C_N_CA, is_bound & mask[..., 1:, 1]),
  ):
    error = jnp.sqrt(1e-6 + jnp.square(found - wanted))
    beyond = jax.nn.relu(error - tolerance * spread)
    total += jnp.where(known, beyond, 0)
    broken |= known & (error > tolerance * spread)
  both = lambda x: (
    jnp.concatenate([x, jnp.zeros_like(x[..., :1])], axis=-1),
    jnp.concatenate([jnp.zeros_like(x[..., :1]), x], axis=-1),
  )
  first, second = both(total)
  before, after = both(broken)
  return (first + second) / 2, before | after


def neighbour_errors(
  codes: Array, numbers: Array, atoms: Array, mask: Array
) -> tuple[Array, Array]:
  """How wrong the distances of neighbours are, if no bond is cis.

  Args:
    codes: int32 [..., I].
    numbers: int32 [..., I], places in the sequence.
    atoms: [..., I, P, 3] in Angstrom; the first atoms are N, CA and C.
    mask: bool [..., I, P].

  Returns:
    (errors of CA-CA, errors of C-N), each [..., I - 1] in Angstrom. An error is
    0 between residues that are no neighbours or lack an atom.
  """
  is_bound = numbers[..., 1:] - numbers[..., :-1] == 1
  is_bound &= mask[..., :-1, 1:3].all(axis=-1) & mask[..., 1:, :2].all(axis=-1)
  ca_ca = _length(atoms[..., :-1, 1, :], atoms[..., 1:, 1, :])
  c_n = _length(atoms[..., :-1, 2, :], atoms[..., 1:, 0, :])
  bond, _ = _peptide_bonds(codes)
  return (
    jnp.where(is_bound, ca_ca - _CA_CA, 0),
    jnp.where(is_bound, c_n - bond, 0),
  )


def crowding(
  numbers: Array, ca: Array, mask: Array, least: float = LEAST_CA
) -> Array:
  """Mean [...] over residues of what their CA distances lack, in Angstrom.

  Args:
    numbers: int32 [..., I]. Neighbours do not count.
    ca: [..., I, 3] in Angstrom.
    mask: bool [..., I].
    least: distance in Angstrom from which two CA atoms lack nothing.
  """
  pairs = mask[..., :, None] & mask[..., None, :]
  pairs &= jnp.abs(numbers[..., :, None] - numbers[..., None, :]) > 1
  lacking = jnp.where(pairs, jax.nn.relu(least - distances(ca, ca)), 0)
  return mean(jnp.sum(lacking, axis=-1) / 2, mask)


def loss(
  codes: Array, batch: Batch, atoms: Array, has_side_chains: bool
) -> Array:
  """The loss [...] of wrong bonds, clashes, and crowded CA atoms.

  Args:
    codes: int32 [..., I].
    batch: has `numbers` and `valid` [..., I], and the `mask` of true atoms. A
      side chain that the true structure lacks does not count, since no other
      loss trains it.
    atoms: [..., I, 14, 3] in Angstrom.
    has_side_chains: whether side chains count at all.
  """
  numbers, valid = batch['numbers'], batch['valid']
  slots = residues.ATOM14 if has_side_chains else len(residues.BACKBONE)
  is_backbone = jnp.arange(slots) < len(residues.BACKBONE)
  has_side_chain = batch['mask'][..., 4:].any(axis=-1, keepdims=True)
  mask = jnp.asarray(residues.residues().mask)[codes][..., :slots]
  mask &= (has_side_chain | is_backbone) & valid[..., None]
  atoms = atoms[..., :slots, :]
  bonds, _ = bond_violations(codes, numbers, atoms, mask)
  clash, _ = clashes(codes, numbers, atoms, mask)
  crowded = crowding(numbers, atoms[..., 1, :], valid)
  return mean(bonds, valid) + clash + crowded


def clashes(
  codes: Array, numbers: Array, atoms: Array, mask: Array, overlap: float = 1.5
) -> tuple[Array, Array]:
  """Finds atoms of different residues that are too close to each other.

  Args:
    codes: int32 [..., I], kinds of residues.
    numbers: int32 [..., I], places in the sequence.
    atoms: [..., I, P, 3] in Angstrom.
    mask: bool [..., I, P], whether an atom is known.
    overlap: length in Angstrom by which two atoms may overlap.

  Returns:
    (mean loss per atom [...] in Angstrom; bool [..., I], whether an atom of the
    residue clashes).
  """
  lead, (size, slots) = codes.shape[:-1], mask.shape[-2:]
  flat = lambda x: x.reshape(*lead, size * slots, *x.shape[len(lead) + 2 :])
  # An unknown residue has the backbone of glycine.
  named = jnp.where(codes == residues.UNKNOWN, _GLYCINE, codes)
  radius = flat(jnp.asarray(residues.residues().radius)[named][..., :slots])
  known = flat(mask)
  place = jnp.repeat(numbers, slots, axis=-1)
  slot = jnp.tile(jnp.arange(slots), size)
  apart = place[..., None, :] - place[..., :, None]
  pairs = known[..., :, None] & known[..., None, :] & (apart > 0)
  # The two atoms of a peptide bond do not clash, nor do two sulphur atoms of a
  # disulphide bridge.
  is_bond = (apart == 1) & (slot[:, None] == 2) & (slot == 0)
  is_sulphur = (codes == residues.LETTERS.index('C'))[..., None] & (
    jnp.arange(slots) == 5
  )
  is_sulphur = flat(is_sulphur)
  is_bridge = is_sulphur[..., :, None] & is_sulphur[..., None, :]
  pairs &= ~is_bond & ~is_bridge
  points = flat(atoms)
  least = radius[..., :, None] + radius[..., None, :] - overlap
  beyond = jax.nn.relu(least - distances(points, points))
  beyond = jnp.where(pairs, beyond, 0)
  total = jnp.sum(beyond, axis=(-1, -2))
  count = jnp.sum(known, axis=-1, dtype=points.dtype)
  by_atom = jnp.sum(beyond, axis=-1) + jnp.sum(beyond, axis=-2)
  by_residue = by_atom.reshape(*codes.shape, slots).sum(axis=-1) > 0
  return total / jnp.maximum(count, 1), by_residue
