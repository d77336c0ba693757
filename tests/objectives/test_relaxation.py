"""Relaxation mends bonds and clashes, and moves as little as it can."""

import numpy as np
import pytest

from moe.evaluate import structures
from moe.modalities import residues, rigid
from moe.objectives import relaxation, violations
from moe.runs import folded
from tests import folding_cases, protein_data


def shaken(size, noise):
  """A helix whose residues are moved at random."""
  chain = folding_cases.helix(size)
  motion = np.random.RandomState(0).randn(size, 1, 3) * noise
  atoms = (chain.atoms + motion).astype('f4')
  return chain._replace(atoms=atoms)


def relaxed_backbone(chain, atoms, steps):
  mask = chain.mask[:, :4]
  given = chain.codes, chain.numbers, atoms.astype('f4'), mask
  return np.asarray(relaxation.relaxed(*given, steps))


@pytest.mark.slow
def test_bonds_and_clashes_are_mended_near_the_start():
  chain = shaken(40, 2.0)
  wrong = lambda x: np.abs(structures.neighbour_steps(x) - 3.8).max()
  start, end = chain.atoms[:, 1], folded.relaxed(chain).atoms[:, 1]
  assert wrong(start) > 2 and structures.num_clashes(start) > 5
  assert wrong(end) < 0.2 and not structures.num_clashes(end)
  assert np.sqrt(np.mean(np.sum((end - start) ** 2, axis=-1))) < 3


def test_a_rigid_motion_changes_no_energy():
  chain = shaken(16, 0.5)
  motion = rigid.from_update(np.array([0.3, -0.8, 0.5, 10, -20, 5], 'f4'))
  start, end = chain.atoms[:, :4], shaken(16, 1.0).atoms[:, :4]
  energy = lambda atoms, start: relaxation.energy(
    chain.codes, chain.numbers, atoms, chain.mask[:, :4], start
  )
  assert energy(end, start) > energy(start, start) > 10
  both = motion.apply(end), motion.apply(start)
  np.testing.assert_allclose(energy(*both), energy(end, start), rtol=1e-4)


def test_residues_move_as_rigid_bodies_and_padding_changes_nothing():
  chain = shaken(16, 0.5)
  alone = relaxed_backbone(chain, chain.atoms[:, :4], 20)
  padded = folded.relaxed(chain, 20).atoms[:, :4]
  np.testing.assert_allclose(padded, alone, atol=1e-3)
  inner = lambda x: np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
  np.testing.assert_allclose(inner(alone), inner(chain.atoms[:, :4]), atol=1e-3)
  assert np.abs(alone - chain.atoms[:, :4]).max() > 0.5
  assert folded.relaxed(chain, 0) is chain


def test_atoms_of_unknown_residues_clash_as_those_of_glycine():
  chain = shaken(16, 2.0)
  places = np.arange(16)
  clash = lambda codes: violations.clashes(
    codes, places, chain.atoms[:, :4], chain.mask[:, :4]
  )[0]
  named = clash(residues.codes('G' * 16))
  assert named > 0 and clash(residues.codes('X' * 16)) == named


@protein_data.has_data
def test_a_crystal_stays_where_it_is():
  from moe.modalities import structure_files

  (chain,) = structure_files.read(protein_data.FOLDER / 'raw/1CRN.pdb.gz')
  start = chain.atoms[:, 1]
  end = folded.relaxed(chain, 50).atoms[:, 1]
  assert not np.array_equal(end, start)
  assert np.sqrt(np.mean(np.sum((end - start) ** 2, axis=-1))) < 0.3
