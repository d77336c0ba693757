"""Distances of neighbours and crowded CA atoms: values by hand, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities import residues
from moe.objectives import violations
from tests import folding_cases, protein_data


def line(places, sequence='AA', step=1):
  """(codes, numbers, atoms, mask): N, CA and C of residues at these x."""
  size = len(sequence)
  atoms = np.zeros((size, residues.ATOM14, 3), 'f4')
  atoms[:, :3, 0] = places
  mask = np.zeros(atoms.shape[:2], bool)
  mask[:, :3] = True
  return residues.codes(sequence), step * np.arange(size), atoms, mask


# N, CA and C of two residues. C and N are 2.3 apart, both CA 4.8.
FAR = [[-1.4, 0, 1.2], [3.5, 4.8, 6.2]]


@pytest.mark.parametrize(('sequence', 'bond'), [('AA', 1.329), ('AP', 1.341)])
def test_errors_of_neighbours_have_the_values_of_their_definition(
  sequence, bond
):
  ca_ca, c_n = violations.neighbour_errors(*line(FAR, sequence))
  assert ca_ca == pytest.approx([4.8 - 3.807], abs=2e-5)
  assert c_n == pytest.approx([2.3 - bond], abs=2e-5)


def test_a_gap_in_the_numbers_and_a_missing_atom_are_no_bond():
  errors = lambda *given: np.abs(violations.neighbour_errors(*given)).sum()
  assert errors(*line(FAR, step=2)) == 0
  for row, slot in ((0, 1), (0, 2), (1, 0), (1, 1)):
    given = line(FAR)
    given[3][row, slot] = False
    assert errors(*given) == 0


def test_the_gradient_of_an_error_is_finite_where_atoms_are_at_one_place():
  codes, numbers, atoms, mask = line(np.zeros((2, 3)))
  squares = lambda x: sum(
    jnp.sum(jnp.square(error))
    for error in violations.neighbour_errors(codes, numbers, x, mask)
  )
  assert np.isfinite(jax.grad(squares)(jnp.asarray(atoms))).all()


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


def test_violations_count_in_the_last_fifth_of_the_steps():
  from launch.configs import configuration

  run = configuration.read(['runs/fold_gpu.gin'], []).run
  keywords = run.objective.keywords
  assert keywords['factors'].violations == 1
  steps = run.settings.train_steps
  assert keywords['violations_from'] == steps * 0.8
  assert keywords['violations_full'] == steps * 0.9


@protein_data.has_data
def test_crystals_have_right_distances_of_neighbours():
  from moe.modalities import structure_files

  # The chains of the second file have gaps.
  for name in ('1CRN.pdb.gz', '1dix.cif.gz'):
    for chain in structure_files.read(protein_data.FOLDER / 'raw' / name):
      off = violations.neighbour_errors(
        chain.codes, chain.numbers, chain.atoms, chain.mask
      )
      # One in 500 bonds is cis, and its CA atoms are 0.9 nearer.
      assert all(np.abs(error).mean() < 0.03 for error in off)
      ca, known = chain.atoms[:, 1], chain.mask[:, 1]
      assert violations.crowding(chain.numbers, ca, known) < 0.001
