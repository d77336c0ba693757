"""Reads chains from structure files: mmCIF, BinaryCIF and PDB, also gzipped.

biotite parses the files. We read only amino acids of polymers; a modified amino
acid is read as its parent. Water and other molecules are left out. If a file
has several models, we read the first. If a residue has alternative places, we
read the place with the highest occupancy.
"""

import gzip
import io
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from moe.modalities import residues
from moe.modalities.protein import LONGEST_BOND, Chain

_logger = logging.getLogger(__name__)

ENDINGS = ('.cif', '.mmcif', '.bcif', '.pdb', '.ent')


def is_structure(path: pathlib.Path) -> bool:
  """Whether a file has the name ending of a structure file, in any case."""
  return path.name.lower().removesuffix('.gz').endswith(ENDINGS)


def read(path: pathlib.Path) -> list[Chain]:
  """Reads the protein chains of a file, in the order of the file.

  Args:
    path: path of the file.

  Raises:
    ValueError: if the file cannot be read as a structure.
  """
  path = pathlib.Path(path)
  is_packed = path.suffix.lower() == '.gz'
  stem = path.stem if is_packed else path.name
  try:
    data = path.read_bytes()
    if is_packed:
      data = gzip.decompress(data)
    atoms, whole, count = _parse(stem.lower(), data)
  except Exception as error:  # biotite and gzip raise errors of many kinds.
    raise ValueError(
      f'{path} must be a structure in mmCIF, BinaryCIF or PDB format, got'
      f' {type(error).__name__}: {error}.'
    ) from error
  if count > 1:
    _logger.info(f'{path}: the first of {count} models is read')
  name = stem.rpartition('.')[0]
  return list(_chains(name, atoms, whole))


def _parse(name: str, data: bytes):
  """(atoms, result of `_sequences` or None for PDB, number of models)."""
  # The import of biotite takes a second, and most programs read no structure.
  from biotite.structure.io import pdb, pdbx

  options = {'model': 1, 'altloc': 'occupancy'}
  if name.endswith(('.pdb', '.ent')):
    file = pdb.PDBFile.read(io.StringIO(data.decode('latin-1')))
    return file.get_structure(**options), None, file.get_model_count()
  if name.endswith('.bcif'):
    file = pdbx.BinaryCIFFile.read(io.BytesIO(data))
  else:
    file = pdbx.CIFFile.read(io.StringIO(data.decode()))
  atoms = pdbx.get_structure(file, use_author_fields=False, **options)
  return atoms, _sequences(file.block), pdbx.get_model_count(file)


def _sequences(block) -> dict[str, list[str]] | None:
  """Chain -> names of all its residues; None if the file does not list them."""
  scheme = block.get('pdbx_poly_seq_scheme')
  if scheme is None:
    return None
  found = {}
  columns = (
    scheme[name].as_array() for name in ('asym_id', 'seq_id', 'mon_id')
  )
  for chain, number, name in zip(*columns, strict=True):
    # If one place has several residues, the first one is the reference.
    found.setdefault(str(chain), {}).setdefault(int(number), str(name))
  return {
    chain: [of_chain[n] for n in sorted(of_chain)]
    for chain, of_chain in found.items()
  }


def _chains(
  name: str, atoms, whole: dict[str, list[str]] | None
) -> Iterator[Chain]:
  from biotite import structure  # The import takes a second, see `_parse`.

  atoms = atoms[structure.filter_amino_acids(atoms)]
  for chain_id in dict.fromkeys(atoms.chain_id.tolist()):
    chain = atoms[atoms.chain_id == chain_id]
    label = f'{name}_{chain_id}' if chain_id else name
    if whole is None:
      found = _numbered_by_bonds(label, chain)
    else:
      # Molecules that are no polymer have no number in the sequence.
      chain = chain[chain.res_id > 0]
      found = _numbered(label, chain, whole.get(chain_id))
    if found is not None:
      yield found


def _code(name: str) -> int:
  """The code of a residue; a modified residue has the code of its parent."""
  from biotite.structure import info  # The import takes a second.

  if name in residues.NAMES:
    return residues.NAMES.index(name)
  letter = info.one_letter_code(name) or 'X'
  return int(residues.codes(letter)[0])


def _numbered(label: str, chain, names: list[str] | None) -> Chain | None:
  """Makes a chain of all residues in `names`; missing ones have no atoms."""
  if not chain.array_length():
    return None
  if names is None:
    return _numbered_by_bonds(label, chain)
  codes = np.array([_code(name) for name in names], np.int32)
  made = Chain(
    label,
    codes,
    np.arange(codes.size, dtype=np.int32),
    np.zeros((codes.size, residues.ATOM14, 3), np.float32),
    np.zeros((codes.size, residues.ATOM14), bool),
  )
  for one in _residues(chain):
    row = int(one.res_id[0]) - 1
    if row < codes.size:
      made.codes[row] = _code(str(one.res_name[0]))
      _fill(made, row, one)
  return made


def _numbered_by_bonds(label: str, chain) -> Chain | None:
  """Makes a chain of the residues with a CA; bonds decide their numbers."""
  kept = [one for one in _residues(chain) if (one.atom_name == 'CA').any()]
  is_bound = [_is_bound(a, b) for a, b in zip(kept, kept[1:], strict=False)]
  # A hetero residue without a bond to a neighbour is a ligand, even if it is an
  # amino acid.
  beside = [
    bool(
      (is_bound[i - 1] if i else 0) or (is_bound[i] if i < len(is_bound) else 0)
    )
    for i in range(len(kept))
  ]
  kept = [
    one
    for one, near in zip(kept, beside, strict=True)
    if near or not one.hetero[0]
  ]
  if not kept:
    return None
  numbers = [0]
  for before, one in zip(kept, kept[1:], strict=False):
    gap = int(one.res_id[0]) - int(before.res_id[0])
    # A bound residue gets the next number. The file's numbers count only at a
    # gap, since an insertion repeats them. Where C and N are too far apart for
    # a bond, a residue is missing, even if the file's numbers have no gap.
    least = 2 if _bond(before, one) is not None else 1
    step = 1 if _is_bound(before, one) else max(least, gap)
    numbers.append(numbers[-1] + step)
  size = len(kept)
  made = Chain(
    label,
    np.array([_code(str(one.res_name[0])) for one in kept], np.int32),
    np.array(numbers, np.int32),
    np.zeros((size, residues.ATOM14, 3), np.float32),
    np.zeros((size, residues.ATOM14), bool),
  )
  for row, one in enumerate(kept):
    _fill(made, row, one)
  return made


def _residues(chain) -> Iterator:
  from biotite import structure  # The import takes a second, see `_parse`.

  return structure.residue_iter(chain)


def _bond(before, after) -> float | None:
  """Distance from C to the next N in Angstrom; None if one is unknown."""
  c = before.coord[before.atom_name == 'C']
  n = after.coord[after.atom_name == 'N']
  if not len(c) or not len(n):
    return None
  return float(np.linalg.norm(c[0] - n[0]))


def _is_bound(before, after) -> bool:
  length = _bond(before, after)
  return length is not None and length <= LONGEST_BOND


def _fill(made: Chain, row: int, one) -> None:
  """Puts the known atoms of a residue into their slots."""
  slots = residues.residues().atoms[made.codes[row]]
  if not slots:  # We keep the backbone of an unknown residue.
    slots = residues.BACKBONE
  for atom, place in zip(one.atom_name.tolist(), one.coord, strict=True):
    # Selenomethionine has selenium in place of sulphur.
    atom = 'SD' if atom == 'SE' else atom
    if atom in slots and np.isfinite(place).all():
      made.atoms[row, slots.index(atom)] = place
      made.mask[row, slots.index(atom)] = True
