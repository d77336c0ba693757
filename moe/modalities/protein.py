"""Chains of proteins as arrays: residues, coordinates, and what is missing."""

from typing import NamedTuple

import numpy as np

from moe.modalities import residues

# In Angstrom. If C and the next N are farther apart, the chain has a break.
LONGEST_BOND = 2.5
# In Angstrom, between the CA atoms of two neighbours.
CA_STEP = 3.8
# Number of residues in the shortest and in the longest chain that is used.
SHORTEST, LONGEST = 30, 1024


class Chain(NamedTuple):
  """A chain of I residues.

  Attributes:
    name: name of the chain, such as '1aki_A'.
    codes: int32 [I], see `residues.codes`.
    numbers: int32 [I], place of the residue in the whole sequence, from 0.
      Missing residues leave a gap in the numbers.
    atoms: float32 [I, 14, 3] in Angstrom, in the slots of
      `residues.Residues.atoms`; 0 where an atom is missing.
    mask: bool [I, 14], whether the atom is known.
  """

  name: str
  codes: np.ndarray
  numbers: np.ndarray
  atoms: np.ndarray
  mask: np.ndarray

  @property
  def sequence(self) -> str:
    """One-letter names of the residues."""
    return residues.letters(self.codes)

  @property
  def has_backbone(self) -> np.ndarray:
    """Bool [I], whether N, CA and C are known."""
    return self.mask[:, :3].all(axis=1)

  @property
  def has_side_chains(self) -> bool:
    """Whether any atom of a side chain is known."""
    return bool(self.mask[:, len(residues.BACKBONE) :].any())


def of_backbone(
  name: str, sequence: str, coordinates: np.ndarray, num_atoms: int = 4
) -> Chain:
  """Makes a chain with known backbone and unknown side chains.

  Args:
    name: name of the chain.
    sequence: one-letter names.
    coordinates: [I, 4, 3], N, CA, C, O.
    num_atoms: how many of the four are kept: 3 leaves out the oxygen.
  """
  codes = residues.codes(sequence)
  atoms = np.zeros((codes.size, residues.ATOM14, 3), np.float32)
  mask = np.zeros((codes.size, residues.ATOM14), bool)
  atoms[:, :num_atoms] = coordinates[:, :num_atoms]
  mask[:, :num_atoms] = True
  numbers = np.arange(codes.size, dtype=np.int32)
  return Chain(name, codes, numbers, atoms, mask)


def centred(chain: Chain) -> Chain:
  """The chain with the mean of its CA atoms at the origin."""
  known = chain.mask[:, 1]
  if not known.any():
    return chain
  centre = chain.atoms[known, 1].mean(axis=0, dtype=np.float64)
  atoms = (chain.atoms - centre).astype(np.float32)
  return chain._replace(atoms=atoms * chain.mask[..., None])


def _is_broken(chain: Chain) -> np.ndarray:
  """Bool [I - 1], whether C and the next N are too far apart for a bond."""
  is_known = chain.mask[:-1, 2] & chain.mask[1:, 0]
  bond = np.linalg.norm(chain.atoms[1:, 0] - chain.atoms[:-1, 2], axis=-1)
  return is_known & (bond > LONGEST_BOND)


def num_breaks(chain: Chain) -> int:
  """Number of neighbour pairs that are too far apart for a peptide bond."""
  return int(_is_broken(chain).sum())


def numbered_by_breaks(chain: Chain) -> Chain:
  """Numbers residues whose numbers are unknown: each break leaves a gap.

  Residues are missing at a break. The gap has room for the least number of
  residues that could join the two ends.
  """
  ca = chain.atoms[:, 1]
  apart = np.linalg.norm(ca[1:] - ca[:-1], axis=-1)
  least = np.maximum(2, np.ceil(apart / CA_STEP))
  steps = np.where(_is_broken(chain), least, 1)
  numbers = np.concatenate([[0], np.cumsum(steps)]).astype(np.int32)
  return chain._replace(numbers=numbers)


def why_unfit(
  chain: Chain, shortest: int = SHORTEST, longest: int = LONGEST
) -> str:
  """Why a chain is not used; '' if it is used.

  Args:
    chain: a chain.
    shortest: smallest number of residues that is allowed.
    longest: largest number of residues that is allowed.
  """
  size = chain.codes.size
  if size < shortest:
    return f'fewer than {shortest} residues'
  if size > longest:
    return f'more than {longest} residues'
  if chain.has_backbone.sum() < max(2, size // 2):
    return 'less than half of the backbone is known'
  if (chain.codes == residues.UNKNOWN).mean() > 0.1:
    return 'more than a tenth of the residues are unknown'
  if np.abs(chain.atoms).max() > 1e4:
    return 'coordinates beyond 10,000 Angstrom'
  return ''


def record_of(chain: Chain) -> dict[str, np.ndarray]:
  """The arrays of a chain as a token store holds them."""
  return {
    'codes': chain.codes.astype(np.uint8),
    'numbers': chain.numbers.astype(np.int32),
    'atoms': chain.atoms.astype(np.float32),
    'mask': chain.mask.astype(np.uint8),
    'name': np.frombuffer(chain.name.encode(), np.uint8),
  }


def of_record(record: dict[str, np.ndarray]) -> Chain:
  """The chain that `record_of` wrote."""
  return Chain(
    record['name'].tobytes().decode(),
    record['codes'].astype(np.int32),
    record['numbers'],
    record['atoms'],
    record['mask'].astype(bool),
  )
