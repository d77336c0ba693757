"""Atoms, groups, torsions and symmetries of the amino acids."""

import numpy as np
import pytest

from moe.modalities import residues
from tests import protein_data

TABLES = residues.residues()
CODE = {name: i for i, name in enumerate(residues.NAMES)}


def atoms(name):
  return TABLES.atoms[CODE[name]]


def whole(code):
  """Atom -> position, for a residue with torsions of 0 and CA at the origin."""
  frames = list(TABLES.frames[code].astype(np.float64))
  for group in range(residues.CHI_GROUP + 1, residues.NUM_GROUPS):
    frames[group] = frames[group - 1] @ frames[group]
  return {
    atom: frames[TABLES.group[code, i]] @ [*TABLES.local[code, i], 1.0]
    for i, atom in enumerate(TABLES.atoms[code])
  }


def test_codes_and_letters_are_inverses_and_others_are_unknown():
  assert residues.letters(residues.codes(residues.LETTERS)) == residues.LETTERS
  assert residues.letters(residues.codes('AUZ*a')) == 'AXXXX'


def test_the_twenty_have_167_heavy_atoms():
  # The backbones of 20 residues have 4 atoms each, 80 in all. The side chains,
  # from glycine with 0 to tryptophan with 10 atoms, have 87.
  assert TABLES.mask.sum() == TABLES.mask_37.sum() == 167
  assert not TABLES.mask[residues.UNKNOWN].any()
  assert atoms('TRP')[-1] == 'CH2' and len(atoms('TRP')) == 14


def test_slots_and_the_37_names_lead_to_each_other():
  for code, names in enumerate(TABLES.atoms):
    for slot, atom in enumerate(names):
      assert residues.ATOM_NAMES[TABLES.to_37[code, slot]] == atom
      assert TABLES.to_14[code, TABLES.to_37[code, slot]] == slot


def test_arginine_has_four_chi_angles_and_alanine_none():
  # Chi 1 exists in 18 residues, all except A and G. Of these, C, S, T and V
  # have no chi 2. E, Q, M, K and R have chi 3, and K and R have chi 4.
  assert TABLES.has_chi.sum(axis=0).tolist() == [18, 14, 5, 2]
  names = [atoms('ARG')[slot] for slot in TABLES.chi[CODE['ARG'], 3]]
  assert names == ['CG', 'CD', 'NE', 'CZ']


def test_only_the_symmetric_atoms_of_four_residues_are_renamed():
  changed = np.argwhere(TABLES.swap != np.arange(14))
  assert {residues.NAMES[code] for code, _ in changed} == {
    'ASP',
    'GLU',
    'PHE',
    'TYR',
  }
  assert len(changed) == 2 + 2 + 4 + 4
  slots = np.take_along_axis(TABLES.swap, TABLES.swap, axis=1)
  np.testing.assert_array_equal(slots, np.tile(np.arange(14), (21, 1)))
  assert TABLES.is_pi_periodic.sum() == 4
  assert TABLES.is_pi_periodic[CODE['GLU'], 2]


def test_every_bond_of_a_built_residue_has_a_length_of_chemistry():
  # Bonds among C, N and O are from 1.2 to 1.6 Angstrom long. Bonds of sulphur
  # are up to 1.85 Angstrom long.
  for code, name in enumerate(residues.NAMES):
    place = whole(code)
    _, _, bonds = residues._component(name)
    for one, two in bonds:
      length = np.linalg.norm(place[one] - place[two])
      is_ring_end = name == 'PRO' and {one, two} == {'N', 'CD'}
      most = 1.86 if 'S' in one + two else 1.6
      assert 1.2 < length < most or is_ring_end, (name, one, two, length)


def test_residues_are_left_handed_at_the_alpha_carbon():
  # In an L amino acid, CO, R and N run clockwise if the hydrogen of CA points
  # to the viewer.
  for code, name in enumerate(residues.NAMES):
    if name != 'GLY':
      n, c, cb = (whole(code)[atom][:3] for atom in ('N', 'C', 'CB'))
      assert np.cross(n, c) @ cb > 1


def test_a_torsion_of_the_ideal_residue_is_zero_after_a_group_is_placed():
  for code in range(20):
    for chi in np.flatnonzero(TABLES.has_chi[code]):
      place = whole(code)
      names = [TABLES.atoms[code][slot] for slot in TABLES.chi[code, chi]]
      turn = residues.torsion(*(place[atom][:3] for atom in names))
      assert abs(turn) < 1e-3


def test_torsion_and_angle_of_an_attached_atom_are_those_that_were_asked():
  before = tuple(np.random.RandomState(0).randn(3, 3))
  atom = residues.attach(before, 1.5, 110.0, -75.0)
  assert np.isclose(np.linalg.norm(atom - before[2]), 1.5)
  assert np.isclose(residues.torsion(*before, atom), -75.0)


def test_radii_are_those_of_bondi():
  names = atoms('MET')
  radius = dict(zip(names, TABLES.radius[CODE['MET']], strict=False))
  expected = {'C': 1.7, 'N': 1.55, 'O': 1.52, 'SD': 1.8}
  for atom, value in expected.items():
    assert radius[atom] == pytest.approx(value)


@protein_data.has_data
def test_frames_of_all_residues_are_alphafolds_to_three_hundredths():
  known = protein_data.case('geometry')['out']['rigid_group_transforms']
  ours = TABLES.frames[:20]
  apart = np.linalg.norm(ours[..., :3, 3] - known[..., :3, 3], axis=-1)
  assert apart.max() <= 0.03
  # If an axis is off by 0.02, an atom at a distance of 1.5 Angstrom is off by
  # 0.03 Angstrom.
  assert np.abs(ours - known)[..., :3, :3].max() <= 0.02


@protein_data.has_data
def test_atoms_of_residues_are_alphafolds_to_three_hundredths():
  known = protein_data.case('geometry')
  frames = known['out']['global_transforms']
  for i, code in enumerate(known['in']['residues']):
    # The known frames are not exact rotations. They stretch space, so the
    # tolerance is multiplied by the stretch.
    stretch = np.linalg.norm(known['in']['T'][i, :3, :3], ord=2)
    for slot, atom in enumerate(TABLES.atoms[code]):
      place = known['out']['atom_positions'][i, residues.ATOM_NAMES.index(atom)]
      frame = frames[i, TABLES.group[code, slot]]
      ours = (frame @ [*TABLES.local[code, slot], 1.0])[:3]
      assert np.linalg.norm(ours - place) <= 0.03 * stretch, (code, atom)
  mask = TABLES.mask_37[known['in']['residues']]
  np.testing.assert_array_equal(mask, known['out']['atom_mask'])
