"""Distances of neighbours and crowded CA atoms: values by hand, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities import residues
from moe.objectives import folding, violations
from tests import folding_cases, protein_data


def line(places, sequence='AA'):
  """(codes, atoms): N, CA and C of residues at these x, and no other atom."""
  atoms = np.zeros((len(sequence), residues.ATOM14, 3), 'f4')
  atoms[:, :3, 0] = places
  return residues.codes(sequence), atoms


def batch(atoms, step=1):
  mask = np.zeros(atoms.shape[:2], bool)
  mask[:, :3] = True
  numbers = step * np.arange(len(atoms), dtype='i4')
  return {'atoms': atoms, 'mask': mask, 'numbers': numbers}


# N, CA and C of two residues. C and N are 1.3 apart, both CA 3.8.
RIGHT = [[-1.4, 0, 1.2], [2.5, 3.8, 5.2]]
# The same with the second residue 1 farther.
FAR = [[-1.4, 0, 1.2], [3.5, 4.8, 6.2]]
# Both CA are 3 apart, as across a cis bond.
CIS = [[-1.4, 0, 1.2], [2.5, 3.0, 5.2]]


@pytest.mark.parametrize(
  ('places', 'true', 'sequence', 'expected'),
  [
    (RIGHT, RIGHT, 'AA', 0),
    # CA-CA is right in 3.807 +- 3 x 0.028, and C-N in 1.329 +- 3 x 0.014.
    (FAR, RIGHT, 'AA', (4.8 - 3.891) + (2.3 - 1.371)),
    # Before proline, C-N is right in 1.341 +- 3 x 0.016.
    (FAR, RIGHT, 'AP', (4.8 - 3.891) + (2.3 - 1.389)),
    # Across a cis bond, CA-CA is right in 2.95 +- 3 x 0.07.
    (CIS, CIS, 'AP', 0),
    (RIGHT, CIS, 'AP', 3.8 - 3.16),
    (CIS, RIGHT, 'AP', 3.723 - 3.0),
    # The true chain has a break.
    (FAR, [[-1.4, 0, 1.2], [30, 31.3, 32.7]], 'AA', 0),
  ],
)
def test_distances_of_neighbours_have_the_values_of_their_definition(
  places, true, sequence, expected
):
  codes, atoms = line(places, sequence)
  given = batch(line(true)[1])
  found = violations.neighbour_distances(codes, given, atoms)
  assert found.dtype == jnp.float32
  assert found == pytest.approx(expected, abs=2e-5)


def test_a_gap_in_the_numbers_and_a_missing_atom_are_no_bond():
  codes, atoms = line(FAR)
  true = line(RIGHT)[1]
  assert violations.neighbour_distances(codes, batch(true, 2), atoms) == 0
  for row, slot in ((0, 1), (0, 2), (1, 0), (1, 1)):
    given = batch(true)
    given['mask'][row, slot] = False
    assert violations.neighbour_distances(codes, given, atoms) == 0


def test_a_neighbour_that_is_too_far_is_pulled_and_one_in_place_is_left():
  codes, atoms = line(FAR)
  given = batch(line(RIGHT)[1])
  grad = jax.grad(lambda x: violations.neighbour_distances(codes, given, x))
  pull = np.zeros_like(atoms)
  pull[0, 1:3, 0], pull[1, :2, 0] = -1, 1  # Both CA, C and the next N.
  np.testing.assert_allclose(grad(jnp.asarray(atoms)), pull, atol=1e-4)
  assert not grad(jnp.asarray(given['atoms'])).any()
  collapsed = grad(jnp.zeros_like(atoms))
  assert np.isfinite(collapsed).all()


def test_ca_atoms_crowd_unless_they_are_of_neighbours():
  ca = np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0], [90, 0, 0]], 'f4')
  numbers = np.arange(4, dtype='i4')
  mask = np.array([True, True, True, False])
  found = violations.crowding(numbers, ca, mask)
  # Only residues 0 and 2 are no neighbours. They lack 3.6 - 3 Angstrom, and
  # the mean is over three residues.
  assert found == pytest.approx(0.6 / 3, abs=1e-4)
  apart = np.array([0, 1, 3, 4], 'i4')
  # Now residues 1 and 2 are no neighbours either. They lack 3.6 - 2.
  found = violations.crowding(apart, ca, mask)
  assert found == pytest.approx((0.6 + 1.6) / 3, abs=1e-4)


def test_without_side_chains_the_violations_are_those_of_the_backbone():
  run = folding_cases.configured().run
  made = folding_cases.batch(run)
  codes = made['codes']
  atoms = np.random.RandomState(0).randn(*made['atoms'].shape).astype('f4')
  moved = atoms.copy()
  moved[:, :, 4:] += 1
  loss = lambda x, has: violations.loss(codes, made, x, has)
  np.testing.assert_array_equal(loss(atoms, False), loss(moved, False))
  # These true chains have no side chains, so the result is the same.
  np.testing.assert_allclose(loss(atoms, True), loss(atoms, False), rtol=1e-5)
  made['mask'] |= residues.residues().mask[codes]
  assert (loss(atoms, True) != loss(moved, True)).any()


@pytest.mark.parametrize('name', ['fold_cpu', 'fold_gpu'])
def test_violations_count_in_the_last_fifth_of_the_steps(name):
  from launch.configs import configuration

  run = configuration.read([f'runs/{name}.gin'], []).run
  keywords = run.objective.keywords
  assert keywords['factors'].violations == 1
  assert folding.Factors().neighbours == 0.1
  steps = run.settings.train_steps
  assert keywords['violations_from'] == steps * 0.8
  assert keywords['violations_full'] == steps * 0.9


@protein_data.has_data
def test_crystals_have_right_distances_of_neighbours():
  from moe.modalities import structure_files

  # The chains of the second file have gaps.
  for name in ('1CRN.pdb.gz', '1dix.cif.gz'):
    for chain in structure_files.read(protein_data.FOLDER / 'raw' / name):
      given = chain._asdict()
      off = violations.neighbour_distances(chain.codes, given, chain.atoms)
      assert off < 0.005
      ca, known = chain.atoms[:, 1], chain.mask[:, 1]
      assert violations.crowding(chain.numbers, ca, known) < 0.001
