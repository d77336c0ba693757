"""The twenty amino acids: names, atoms, torsions, symmetries, ideal geometry.

Atoms and bonds are those of the Chemical Component Dictionary, which biotite
contains. The dictionary's ideal coordinates have tetrahedral angles, which
differ from the angles in crystals. So `_ANGLES` has mean angles from Engh &
Huber (1991), Acta Cryst. A47, 392-400, and this file builds every residue from
bond lengths, angles and torsions.

Rigid groups are AlphaFold's (Jumper et al. 2021, supplement 1.8.4): 0 backbone,
1 pre-omega, 2 phi, 3 psi, 4 to 7 the side chain beyond each chi angle.
"""

import functools
from typing import NamedTuple

import numpy as np

# One-letter codes in alphabetical order of the three-letter names.
LETTERS = 'ARNDCQEGHILKMFPSTWYV'
NAMES = (
  'ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR'
  ' VAL'
).split()
# The code of a residue of unknown kind.
UNKNOWN = len(LETTERS)
NUM_CODES = UNKNOWN + 1
NUM_GROUPS = 8
PSI_GROUP, CHI_GROUP = 3, 4
# Sizes of the atom dim: the slots of one residue, or all `ATOM_NAMES`.
ATOM14, ATOM37 = 14, 37
ATOM_NAMES = (
  'N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2'
  ' CE3 NE NE1 NE2 OE1 OE2 CH2 NH1 NH2 OH CZ CZ2 CZ3 NZ OXT'
).split()
BACKBONE = ('N', 'CA', 'C', 'O')
# The atoms that follow N, CA and CB along the side chain. Every four
# neighbouring atoms of the whole list define a chi angle.
_CHI = {
  'ARG': 'CG CD NE CZ',
  'ASN': 'CG OD1',
  'ASP': 'CG OD1',
  'CYS': 'SG',
  'GLN': 'CG CD OE1',
  'GLU': 'CG CD OE1',
  'HIS': 'CG ND1',
  'ILE': 'CG1 CD1',
  'LEU': 'CG CD1',
  'LYS': 'CG CD CE NZ',
  'MET': 'CG SD CE',
  'PHE': 'CG CD1',
  'PRO': 'CG CD',
  'SER': 'OG',
  'THR': 'OG1',
  'TRP': 'CG CD1',
  'TYR': 'CG CD1',
  'VAL': 'CG1',
}
# Pairs of atoms that differ only in their names. Swapping the names changes the
# last chi angle by pi.
_SYMMETRIC = {
  'ASP': (('OD1', 'OD2'),),
  'GLU': (('OE1', 'OE2'),),
  'PHE': (('CD1', 'CD2'), ('CE1', 'CE2')),
  'TYR': (('CD1', 'CD2'), ('CE1', 'CE2')),
}
# Bond angles in degrees: between an atom, its parent, and the parent's parent.
# The parent of an atom is its neighbour on the way to the backbone.
_ANGLES = {
  'ARG': {'CG': 114.1, 'CD': 111.3, 'NE': 112.0, 'CZ': 124.2},
  'ASN': {'CG': 112.6, 'OD1': 120.8, 'ND2': 116.4},
  'ASP': {'CG': 112.6, 'OD1': 118.4, 'OD2': 118.4},
  'CYS': {'SG': 114.4},
  'GLN': {'CG': 114.1, 'CD': 112.6, 'OE1': 120.8, 'NE2': 116.4},
  'GLU': {'CG': 114.1, 'CD': 112.6, 'OE1': 118.4, 'OE2': 118.4},
  'HIS': {'CG': 113.8},
  'ILE': {'CG1': 110.4, 'CG2': 110.5, 'CD1': 113.8},
  'LEU': {'CG': 116.3, 'CD1': 110.7, 'CD2': 110.7},
  'LYS': {'CG': 114.1, 'CD': 111.3, 'CE': 111.3, 'NZ': 111.9},
  'MET': {'CG': 114.1, 'SD': 112.7, 'CE': 100.9},
  'PHE': {'CG': 113.8},
  'PRO': {'CG': 104.8},
  'SER': {'OG': 111.1},
  'THR': {'OG1': 109.6, 'CG2': 110.5},
  'TRP': {'CG': 113.6},
  'TYR': {'CG': 113.8},
  'VAL': {'CG1': 110.5, 'CG2': 110.5},
}
# (residue, atom) -> length in crystals of the atom's bond to its parent, in
# Angstrom. The dictionary of chemical components has another length.
_LENGTHS = {('PRO', 'CG'): 1.495}


class Residues(NamedTuple):
  """Tables over the codes of residues; the row of `UNKNOWN` is empty.

  Attributes:
    atoms: names of the atoms of each residue, at most 14.
    mask: bool [21, 14], whether the slot holds an atom.
    to_37: int32 [21, 14], place of the slot's atom among `ATOM_NAMES`.
    to_14: int32 [21, 37], slot of the atom; 0 where the residue lacks it.
    mask_37: bool [21, 37], whether the residue has the atom.
    group: int32 [21, 14], rigid group of the atom.
    local: float32 [21, 14, 3], Angstrom, coordinates of the atom in the frame
      of its group.
    frames: float32 [21, 8, 4, 4], frame of each group at a torsion of 0. It is
      given in the frame of group 0 for groups 0 to 4, and in the frame of the
      group before it for groups 5 to 7.
    chi: int32 [21, 4, 4], slots of the four atoms of each chi angle.
    has_chi: bool [21, 4], whether the residue has the chi angle.
    is_pi_periodic: bool [21, 4], whether a turn by pi gives the same atoms.
    swap: int32 [21, 14], slot of the atom with which each atom may swap names;
      its own slot for most atoms.
    radius: float32 [21, 14], van der Waals radius in Angstrom.
  """

  atoms: tuple[tuple[str, ...], ...]
  mask: np.ndarray
  to_37: np.ndarray
  to_14: np.ndarray
  mask_37: np.ndarray
  group: np.ndarray
  local: np.ndarray
  frames: np.ndarray
  chi: np.ndarray
  has_chi: np.ndarray
  is_pi_periodic: np.ndarray
  swap: np.ndarray
  radius: np.ndarray


def codes(sequence: str) -> np.ndarray:
  """Codes of one-letter names; a letter that is none of the twenty is unknown.

  Args:
    sequence: names of residues, one capital letter each.

  Returns:
    int32, one code per letter.
  """
  known = {letter: i for i, letter in enumerate(LETTERS)}
  return np.array([known.get(x, UNKNOWN) for x in sequence], np.int32)


def letters(codes_I: np.ndarray) -> str:
  """One-letter names of codes; X for an unknown residue."""
  return ''.join((LETTERS + 'X')[code] for code in codes_I)


def frame(
  x_3: np.ndarray, xy_3: np.ndarray, origin_3: np.ndarray
) -> np.ndarray:
  """A 4 x 4 frame from its x axis, a vector in its xy plane, and its origin."""
  x = x_3 / np.linalg.norm(x_3)
  y = xy_3 - x * (x @ xy_3)
  y = y / np.linalg.norm(y)
  result = np.eye(4)
  result[:3] = np.stack([x, y, np.cross(x, y), origin_3], axis=-1)
  return result


@functools.cache
def residues() -> Residues:
  """The tables of all residues; the first call reads biotite's components."""
  size = (NUM_CODES, ATOM14)
  tables = Residues(
    atoms=tuple(tuple(_component(name)[0]) for name in NAMES) + ((),),
    mask=np.zeros(size, bool),
    to_37=np.zeros(size, np.int32),
    to_14=np.zeros((NUM_CODES, ATOM37), np.int32),
    mask_37=np.zeros((NUM_CODES, ATOM37), bool),
    group=np.zeros(size, np.int32),
    local=np.zeros((*size, 3), np.float32),
    frames=np.tile(np.eye(4, dtype=np.float32), (NUM_CODES, NUM_GROUPS, 1, 1)),
    chi=np.zeros((NUM_CODES, 4, 4), np.int32),
    has_chi=np.zeros((NUM_CODES, 4), bool),
    is_pi_periodic=np.zeros((NUM_CODES, 4), bool),
    swap=np.tile(np.arange(ATOM14, dtype=np.int32), (NUM_CODES, 1)),
    radius=np.zeros(size, np.float32),
  )
  for code in range(len(NAMES)):
    _fill_names(tables, code)
    _fill_geometry(tables, code)
  for table in tables[1:]:
    table.flags.writeable = False  # All callers share the tables.
  return tables


def _chi_path(name: str) -> list[str]:
  """Atoms along the chi angles; four neighbours in the list define an angle."""
  return ['N', 'CA', 'CB', *_CHI.get(name, '').split()]


def _fill_names(tables: Residues, code: int):
  """Fills the tables that depend only on the names of the atoms."""
  # The import takes a second, which programs without proteins save.
  from biotite.structure import info

  name, atoms = NAMES[code], tables.atoms[code]
  for slot, atom in enumerate(atoms):
    place = ATOM_NAMES.index(atom)
    tables.mask[code, slot] = tables.mask_37[code, place] = True
    tables.to_37[code, slot] = place
    tables.to_14[code, place] = slot
    tables.radius[code, slot] = info.vdw_radius_single(atom[0])
  path = _chi_path(name)
  for k in range(len(path) - 3):
    tables.chi[code, k] = [atoms.index(atom) for atom in path[k : k + 4]]
    tables.has_chi[code, k] = True
  for one, two in _SYMMETRIC.get(name, ()):
    i, j = atoms.index(one), atoms.index(two)
    tables.swap[code, [i, j]] = j, i
    tables.is_pi_periodic[code, len(path) - 4] = True


def _fill_geometry(tables: Residues, code: int):
  """Fills the frames of rigid groups and the coordinates of atoms in them."""
  name, atoms = NAMES[code], tables.atoms[code]
  place, parents = _build(name)
  path = _chi_path(name)
  # For psi, a torsion of 0 means that CA, C and O lie in the xy plane. For chi,
  # it means that the four atoms of the angle lie in this plane, with both outer
  # atoms on the same side.
  base = {0: frame(place['C'], place['N'], place['CA'])}
  base[1] = base[0]
  base[2] = frame(place['N'], place['C'], place['N'])
  base[3] = frame(place['C'], -place['N'], place['C'])
  for k in range(len(path) - 3):
    a, b, c = (place[atom] for atom in path[k : k + 3])
    base[CHI_GROUP + k] = frame(c - b, a - b, c)
  for group, whole in base.items():
    tables.frames[code, group] = np.linalg.inv(base[0]) @ whole
  for slot, atom in enumerate(atoms):
    group = _group(atom, parents, path)
    local = (np.linalg.inv(base[group]) @ [*place[atom], 1.0])[:3]
    if group == PSI_GROUP or group >= CHI_GROUP:
      lead = 'O' if group == PSI_GROUP else path[group - CHI_GROUP + 3]
      y, z = (np.linalg.inv(base[group]) @ [*place[lead], 1.0])[1:3]
      turn = np.array([[y, z], [-z, y]]) / np.hypot(y, z)
      local[1:] = turn @ local[1:]
    tables.group[code, slot] = group
    tables.local[code, slot] = local
  # From chi 2 on, the origin of a group is the atom whose place the previous
  # chi angle defines.
  for k in range(1, len(path) - 3):
    lead = tables.local[code, atoms.index(path[k + 2])].astype(np.float64)
    tables.frames[code, CHI_GROUP + k] = frame(
      lead, np.array([-1.0, 0, 0]), lead
    )


def _group(atom: str, parents: dict[str, str], path: list[str]) -> int:
  """The rigid group of an atom: the group of the last torsion that moves it."""
  if atom in ('N', 'CA', 'C', 'CB'):
    return 0
  if atom == 'O':
    return PSI_GROUP
  parent = parents[atom]
  if parent in path[2:-1]:
    return CHI_GROUP + path.index(parent) - 2
  return _group(parent, parents, path)


@functools.cache
def _component(name: str) -> tuple[list[str], dict, list[tuple[str, str]]]:
  """Heavy atoms of a residue, their ideal coordinates, and its bonds."""
  from biotite.structure import info

  atoms = info.residue(name)
  is_kept = (atoms.element != 'H') & (atoms.atom_name != 'OXT')
  atoms = atoms[is_kept]
  names = [str(x) for x in atoms.atom_name]
  place = dict(zip(names, atoms.coord.astype(np.float64), strict=True))
  bonds = [(names[i], names[j]) for i, j, _ in atoms.bonds.as_array()]
  return names, place, bonds


def _build(name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """(coordinates, parents); CA is at 0, C on the x axis, N in the xy plane."""
  names, ideal, bonds = _component(name)
  near = {atom: set() for atom in names}
  for one, two in bonds:
    near[one].add(two)
    near[two].add(one)
  place = _backbone(name)
  parents = {'C': 'CA', 'CB': 'CA', 'CA': 'N'}
  order = ['CB'] if 'CB' in names else []
  for atom in order:  # The loop appends to the list that it reads.
    for child in sorted(near[atom] - set(parents) - {'N'}):
      parents[child] = atom
      order.append(child)
  for atom in order[1:]:
    b = parents[atom]
    c = parents[b]
    d = parents[c]
    angle = _ANGLES[name].get(atom, _angle(ideal[atom], ideal[b], ideal[c]))
    place[atom] = attach(
      (place[d], place[c], place[b]),
      _LENGTHS.get((name, atom), float(np.linalg.norm(ideal[atom] - ideal[b]))),
      angle,
      torsion(ideal[d], ideal[c], ideal[b], ideal[atom]),
    )
  return place, parents


def _backbone(name: str) -> dict[str, np.ndarray]:
  """Atom -> coordinates [3] of N, CA, C, O and CB, by Engh and Huber's angles.

  The unit is Angstrom. CA is at 0, C on the x axis, and N in the xy plane.
  """
  n_ca, ca_c, n_ca_c = 1.458, 1.525, 111.2
  if name == 'GLY':
    n_ca, ca_c, n_ca_c = 1.451, 1.516, 112.5
  if name == 'PRO':
    n_ca, n_ca_c = 1.466, 112.7
  if name in ('ILE', 'VAL'):
    n_ca_c = 109.8
  angle = np.deg2rad(n_ca_c)
  place = {
    'CA': np.zeros(3),
    'C': np.array([ca_c, 0.0, 0.0]),
    'N': n_ca * np.array([np.cos(angle), np.sin(angle), 0.0]),
  }
  # O gets a torsion of 0, since it has no ideal one: psi turns O.
  place['O'] = attach((place['N'], place['CA'], place['C']), 1.231, 120.5, 0.0)
  if name != 'GLY':
    # The angle C-CA-CB of isoleucine and of valine is the mean of the values in
    # the two editions of Engh and Huber.
    cb_n, cb_c = {
      'ALA': (110.4, 110.5),
      'ILE': (111.5, 110.35),
      'PRO': (103.3, 111.7),
      'THR': (111.5, 109.1),
      'VAL': (111.5, 110.3),
    }.get(name, (110.5, 110.1))
    length = 1.54 if name in ('ILE', 'VAL') else 1.53
    # The two angles and the length leave two places for CB, one on each side of
    # the xy plane. The negative z gives the L-amino acid.
    x, u, v = np.cos(np.deg2rad([cb_c, cb_n, n_ca_c]))
    y = (u - x * v) / np.sin(angle)
    place['CB'] = length * np.array([x, y, -np.sqrt(1 - x * x - y * y)])
  return place


def _angle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
  """Degrees between the bonds from b to a and to c."""
  one, two = a - b, c - b
  cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
  return float(np.rad2deg(np.arccos(cosine)))


def torsion(
  a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray
) -> float:
  """Torsion angle of a-b-c-d in degrees, with the sign of IUPAC."""
  axis = (c - b) / np.linalg.norm(c - b)
  one = np.cross(b - a, axis)
  two = np.cross(axis, d - c)
  return float(np.rad2deg(np.arctan2(np.cross(one, two) @ axis, one @ two)))


def attach(
  before: tuple[np.ndarray, np.ndarray, np.ndarray],
  length: float,
  angle: float,
  turn: float,
) -> np.ndarray:
  """Coordinates of a new atom from its bond length, bond angle and torsion.

  Args:
    before: coordinates of three atoms a, b and c; the new one is bound to c.
    length: length of this bond.
    angle: angle at c between b and the new atom, in degrees.
    turn: torsion about b-c between a and the new atom, in degrees.
  """
  a, b, c = before
  base = frame(c - b, a - b, c)
  angle, turn = np.deg2rad([angle, turn])
  local = [-np.cos(angle), np.sin(angle) * np.cos(turn)]
  local.append(np.sin(angle) * np.sin(turn))
  return base[:3, :3] @ np.array(local) * length + c
