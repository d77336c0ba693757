"""Losses of structures: known values, motions, mirrors, missing residues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities import residues, rigid, torsions
from moe.modalities.rigid import Rigid
from moe.objectives import structure_losses as losses
from moe.objectives import violations
from tests import protein_data

pytestmark = pytest.mark.slow

LINE = np.array([[0, 0, 0], [5, 0, 0], [10, 0, 0]], 'f4')
ALL = np.ones(3, bool)
SAME = rigid.identity((2,), jnp.float32)


def motion(seed, *shape):
  random = np.random.RandomState(seed)
  rotation = rigid.from_quaternion(jnp.asarray(random.randn(*shape, 4), 'f4'))
  return Rigid(rotation, jnp.asarray(3 * random.randn(*shape, 3), 'f4'))


@pytest.mark.parametrize(
  ('shift', 'value'), [(0, 0), (2.5, 0.25), (5, 0.5), (10, 1), (20, 1)]
)
def test_fape_of_a_shift_is_the_shift_in_tens_of_angstrom(shift, value):
  moved = LINE + np.array([shift, 0, 0], 'f4')
  found = losses.fape((SAME, SAME), ALL[:2], (moved, LINE), ALL, epsilon=0)
  assert found == pytest.approx(value, abs=1e-6)


def test_unclamped_fape_grows_with_the_error():
  moved = LINE + np.array([20, 0, 0], 'f4')
  found = losses.fape(
    (SAME, SAME), ALL[:2], (moved, LINE), ALL, is_clamped=False, epsilon=0
  )
  assert found == pytest.approx(2, abs=1e-6)


def test_a_rigid_motion_of_everything_costs_no_fape_but_a_mirror_does():
  frames, points = motion(0, 4), 10 * motion(1, 6).translation
  whole = motion(2, 1)
  moved = whole.compose(frames), whole.apply(points)
  mask = np.ones(4, bool), np.ones(6, bool)
  fape = lambda f, p: losses.fape(
    (f, frames), mask[0], (p, points), mask[1], epsilon=0
  )
  assert fape(*moved) < 1e-5
  atoms = jnp.stack(
    [
      frames.apply(jnp.array(x, 'f4'))
      for x in ([0.0, 1, 0], [0.0, 0, 0], [1.0, 0, 0])
    ]
  )
  mirror = jnp.array([1, 1, -1], 'f4')
  assert fape(rigid.from_backbone(*(atoms * mirror)), points * mirror) > 0.1


@pytest.mark.parametrize(
  ('points', 'true', 'value'),
  [
    ([0, 5, 10], [0, 5, 10], 1),
    ([-1, 4, 9], [0, 5, 10], 1),
    ([0, 5.5 - 1e-5], [0, 5], 1),
    ([0, 6 - 1e-5], [0, 5], 0.75),
    ([0, 7 - 1e-5], [0, 5], 0.5),
    ([0, 9 - 1e-5], [0, 5], 0.25),
    ([0, 11], [0, 16 - 1e-5], 1),
    ([0, 10], [0, 5], 0),
    ([0, 25], [0, 20], 1),
  ],
)
def test_lddt_has_the_values_of_its_definition(points, true, value):
  place = lambda x: np.stack([x, 0 * np.array(x), 0 * np.array(x)], 1).astype(
    'f4'
  )
  mask = np.ones(len(true), bool)
  found, _ = losses.lddt_by_residue(place(points), place(true), mask)
  np.testing.assert_allclose(found, value, atol=1e-4)


def test_a_mirror_image_has_the_lddt_of_the_structure():
  points = 2 * motion(0, 9).translation
  mirror = points * jnp.array([1, 1, -1], 'f4')
  mask = np.ones(9, bool)
  assert losses.lddt(mirror, points, mask) == pytest.approx(1)
  assert losses.smooth_lddt(points, points, mask) < 0.3
  assert losses.smooth_lddt(2 * points, points, mask) > 0.5


def test_a_missing_residue_changes_no_loss():
  points, true = 2 * motion(0, 9).translation, 2 * motion(1, 9).translation
  mask = np.arange(9) < 6
  frames = motion(2, 9), motion(3, 9)
  short = jax.tree.map(lambda x: x[:6], frames)
  for loss in (losses.lddt, losses.smooth_lddt):
    whole = loss(points[:6], true[:6], mask[:6])
    np.testing.assert_allclose(loss(points, true, mask), whole, atol=1e-6)
  found = losses.fape(frames, mask, (points, true), mask)
  whole = losses.fape(short, mask[:6], (points[:6], true[:6]), mask[:6])
  np.testing.assert_allclose(found, whole, rtol=1e-5)


def test_bond_violations_of_atoms_in_one_point_are_alphafolds():
  atoms = np.zeros((2, 14, 3), 'f4')
  mask = np.ones((2, 14), bool)
  codes, numbers = np.zeros(2, 'i4'), np.arange(2, dtype='i4')
  found, broken = violations.bond_violations(codes, numbers, atoms, mask)
  # All atoms are in one point, so the length and both cosines are about 0:
  # (1.328 - 12 x 0.014 + 0.4473 - 12 x 0.0311 + 0.5203 - 12 x 0.0353) / 2.
  np.testing.assert_allclose(found, 0.665401, rtol=2e-6)
  assert broken.all()
  found, broken = violations.bond_violations(codes, 2 * numbers, atoms, mask)
  assert not found.any() and not broken.any()


def test_atoms_that_overlap_clash_but_a_peptide_bond_does_not():
  codes, numbers = np.zeros(2, 'i4'), np.arange(2, dtype='i4')
  atoms = np.zeros((2, 14, 3), 'f4')
  mask = np.zeros((2, 14), bool)
  mask[0, 2] = mask[1, 0] = True  # C, and N of the next residue.
  loss, who = violations.clashes(codes, numbers, atoms, mask)
  assert loss == 0 and not who.any()
  loss, who = violations.clashes(codes, 2 * numbers, atoms, mask)
  # Both atoms are at one point, and their residues are not neighbours. The two
  # radii 1.70 and 1.55 may overlap by 1.5. The loss of the pair is divided by
  # the number of atoms, 2.
  assert loss == pytest.approx((1.70 + 1.55 - 1.5) / 2, abs=1e-3) and who.all()


def test_bins_of_the_distogram_have_open_ends():
  found = losses.bins(jnp.array([0.0, 2.3, 2.4, 21.6, 21.7, 99]), 64)
  assert found.tolist() == [0, 0, 1, 62, 63, 63]
  logits = 50 * jax.nn.one_hot(
    losses.bins(losses.distances(LINE, LINE), 64), 64
  )
  assert losses.distogram(logits, LINE, ALL) < 1e-6


def test_confidence_is_the_expectation_of_its_bins():
  sure = 50 * jax.nn.one_hot(jnp.array([0, 49]), 50)
  np.testing.assert_allclose(
    losses.expected_plddt(sure), [0.01, 0.99], atol=1e-6
  )
  assert losses.plddt_targets(jnp.array([0.0, 0.999, 1]), 50).tolist() == [
    0,
    49,
    49,
  ]
  error = 50 * jax.nn.one_hot(jnp.zeros((1, 30, 30), int), 64)
  mask = np.ones((1, 30), bool)
  # All errors are 0.25 Angstrom. For 30 residues d0 is 1.24 x 15^(1/3) - 1.8.
  scale = 1.24 * 15 ** (1 / 3) - 1.8
  expected = 1 / (1 + (0.25 / scale) ** 2)
  assert losses.expected_tm(error, mask)[0] == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(losses.expected_errors(error), 0.25, atol=1e-5)


def test_the_torsions_of_built_atoms_are_those_they_were_built_with():
  codes = residues.codes('RNDCQEHILKMFPSTWYV')
  alpha = rigid.unit(motion(5, 18, 7).translation[..., :2])
  atoms, _ = torsions.all_atoms(codes, motion(6, 18), alpha)
  tables = residues.residues()
  found, is_known = torsions.torsions(
    codes, 2 * np.arange(18, dtype='i4'), atoms, tables.mask[codes]
  )
  # The residues have gaps between them, so omega and phi are unknown.
  assert is_known[:, 2].all() and not is_known[:, :2].any()
  np.testing.assert_array_equal(is_known[:, 3:], tables.has_chi[codes])
  np.testing.assert_allclose(found[is_known], alpha[is_known], atol=2e-3)


def aspartate():
  codes = residues.codes('DGA')
  alpha = np.tile(np.array([0.6, 0.8], 'f4'), (3, 7, 1))
  frames = Rigid(
    jnp.tile(jnp.eye(3), (3, 1, 1)),
    jnp.array([[0.0, 0, 0], [3, 2, 1], [-2, 4, 2]]),
  )
  atoms, _ = torsions.all_atoms(codes, frames, alpha)
  return codes, atoms, residues.residues().mask[codes], alpha


def test_symmetric_atoms_are_renamed_to_suit_the_prediction():
  codes, atoms, mask, _ = aspartate()
  swap = residues.residues().swap[codes]
  swapped = np.take_along_axis(np.asarray(atoms), swap[..., None], axis=1)
  assert np.abs(swapped - atoms).max() > 1
  for given in (atoms, swapped):
    found, found_mask = losses.renamed(codes, atoms, jnp.asarray(given), mask)
    np.testing.assert_array_equal(found, atoms)
    np.testing.assert_array_equal(found_mask, mask)


def test_a_turn_by_pi_of_a_symmetric_chi_costs_nothing():
  codes, _, _, alpha = aspartate()
  mask = np.ones((3, 7), bool)
  other = torsions.other_torsions(codes, jnp.asarray(alpha))
  turned = alpha.copy()
  turned[0, 4] *= -1  # chi 2 of aspartate, whose two oxygens are equivalent
  error = lambda x: losses.torsion(x, alpha, other, mask)[0]
  assert error(turned) < 1e-6
  turned[2, 4] *= -1
  # Alanine has no symmetric atoms, so the squared error is (2 x 1)^2, in a mean
  # over 21 torsions.
  assert error(turned) == pytest.approx(4 / 21, rel=1e-4)
  length = losses.torsion(3 * alpha, alpha, other, mask)[1]
  assert length == pytest.approx(2, rel=1e-4)


@protein_data.has_data
def test_a_crystal_has_few_violations():
  from moe.modalities import structure_files

  path = protein_data.FOLDER / 'raw' / '1CRN.pdb.gz'
  (chain,) = structure_files.read(path)
  arguments = chain.codes, chain.numbers, chain.atoms, chain.mask
  bonds, broken = violations.bond_violations(*arguments)
  assert not broken.any() and bonds.max() == 0
  loss, who = violations.clashes(*arguments)
  assert who.mean() < 0.1
  # Rows 7 to 16 are in crambin's first helix. There phi is about -63 degrees,
  # and psi about -42.
  found, is_known = torsions.torsions(*arguments)
  assert is_known[7:17, 1:3].all()
  degrees = np.rad2deg(np.arctan2(found[..., 1], found[..., 0]))
  assert abs(np.median(degrees[7:17, 1]) + 63) < 8
  assert abs(np.median(degrees[7:17, 2]) + 42) < 8
  assert abs(np.abs(degrees[1:, 0]).min() - 180) < 20  # omega is about 180.


@protein_data.has_data
def test_psi_without_an_oxygen_comes_of_the_next_nitrogen():
  from moe.modalities import structure_files

  path = protein_data.FOLDER / 'raw' / '1CRN.pdb.gz'
  (chain,) = structure_files.read(path)
  arguments = chain.codes, chain.numbers, chain.atoms
  found, _ = torsions.torsions(*arguments, chain.mask)
  mask = chain.mask.copy()
  mask[:, 3] = False
  other, is_known = torsions.torsions(*arguments, mask)
  assert is_known[:-1, 2].all() and not is_known[-1, 2]
  # A peptide bond is nearly flat, so the oxygen and the next nitrogen give
  # nearly the same psi.
  assert np.abs(found[:-1, 2] - other[:-1, 2]).max() < 0.3
