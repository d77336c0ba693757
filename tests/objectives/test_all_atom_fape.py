"""FAPE of all atoms on crystals: symmetric names, turned and missing atoms."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities import residues, rigid, structure_files, torsions
from moe.objectives import folding
from tests import protein_data

RAW = protein_data.FOLDER / 'raw'
pytestmark = protein_data.has_data


@pytest.fixture(scope='module', params=['1CRN.pdb.gz', '1aki.pdb.gz'])
def crystal(request):
  (chain,) = structure_files.read(RAW / request.param)
  atoms = chain.atoms - chain.atoms[:, 1].mean(axis=0)
  return chain._replace(atoms=atoms * chain.mask[..., None])


def true_frames(chain):
  return rigid.from_backbone(*jnp.moveaxis(chain.atoms[:, :3], -2, 0))


def angles(chain):
  """Torsions [I, 7, 2] of a chain; 0 degrees where one is unknown."""
  found, is_known = torsions.torsions(
    chain.codes, chain.numbers, chain.atoms, chain.mask
  )
  return jnp.where(is_known[..., None], found, jnp.array([1.0, 0.0]))


def predicted(chain, alpha):
  """A prediction with the true backbone and these torsions."""
  atoms, groups = torsions.all_atoms(chain.codes, true_frames(chain), alpha)
  return types.SimpleNamespace(atoms=atoms, groups=groups)


def fape(found, chain):
  given = chain._asdict()
  return float(
    folding._all_atom_fape(found, given, true_frames(chain), jnp.array(True))
  )


def turned(chain, code, k):
  """Torsions with chi k of the first residue of a kind turned by 90 degrees."""
  row = int(np.flatnonzero(chain.codes == residues.codes(code)[0])[0])
  alpha = np.array(angles(chain))
  cos, sin = alpha[row, 3 + k]
  alpha[row, 3 + k] = -sin, cos
  return alpha


def test_the_truth_costs_nothing(crystal):
  found = predicted(crystal, angles(crystal))
  exact = types.SimpleNamespace(
    atoms=jnp.asarray(crystal.atoms), groups=found.groups
  )
  # The epsilon of 1e-4 in the root leaves 0.01 Angstrom, a thousandth.
  assert fape(exact, crystal) == pytest.approx(0.001, abs=1e-4)
  # Built residues have ideal bonds and angles, and are 0.2 Angstrom off.
  assert fape(found, crystal) < 0.025


def test_swapped_names_of_symmetric_atoms_cost_nothing(crystal):
  found = predicted(crystal, angles(crystal))
  slots = residues.residues().swap[crystal.codes]
  atoms = np.take_along_axis(crystal.atoms, slots[..., None], axis=1)
  mask = np.take_along_axis(crystal.mask, slots, axis=1)
  moved = np.abs(atoms - crystal.atoms).max(axis=(1, 2)) > 1
  assert {'D', 'F'} <= set(residues.letters(crystal.codes[moved]))
  other = crystal._replace(atoms=atoms, mask=mask)
  assert fape(found, other) == pytest.approx(fape(found, crystal), abs=1e-6)


@pytest.mark.parametrize(('code', 'k'), [('R', 0), ('I', 1), ('T', 0)])
def test_a_turned_chi_costs_something(crystal, code, k):
  right = fape(predicted(crystal, angles(crystal)), crystal)
  wrong = fape(predicted(crystal, turned(crystal, code, k)), crystal)
  assert wrong > right + 1e-4


def test_a_missing_side_chain_costs_nothing_wherever_it_is_predicted(crystal):
  row = int(np.flatnonzero(crystal.codes == residues.codes('R')[0])[0])
  mask = crystal.mask.copy()
  mask[row, 4:] = False
  atoms = crystal.atoms * mask[..., None]
  without = crystal._replace(atoms=atoms, mask=mask)
  right = predicted(crystal, angles(crystal))
  wrong = predicted(crystal, turned(crystal, 'R', 0))
  assert np.abs(right.atoms - wrong.atoms)[row].max() > 1
  assert fape(wrong, without) == fape(right, without)
  assert fape(wrong, crystal) > fape(right, crystal)
