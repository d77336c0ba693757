"""Scores of chains: controls of contacts, confidence, and violations."""

import numpy as np
import pytest

from moe.modalities import torsions
from moe.modalities.structure_writing import Origin
from moe.report import protein_scores_page
from moe.runs import protein_scores
from moe.runs.folded import Prediction
from moe.runs.protein_scores import MODEL, RELAXED, SEPARATION, SHUFFLED
from tests import folding_cases

HELIX = folding_cases.helix(40)


def pair_of_helices(seed):
  """A chain with residues i and i + 20 side by side, 7 Angstrom apart."""
  chain = folding_cases.helix(40, f'c{seed}', seed)
  atoms = chain.atoms.copy()
  atoms[20:] = atoms[:20] + chain.mask[:20, :, None] * np.array([7, 0, 0])
  return chain._replace(atoms=atoms)


CHAINS = [pair_of_helices(seed) for seed in range(4)]


class Perfect:
  """Knows the true structures; it knows nothing of other sequences."""

  def fold(self, sequences, recycles, memory_limit):
    known = {chain.sequence: chain for chain in CHAINS}
    for number, (name, sequence) in enumerate(sequences.items()):
      size = len(sequence)
      chain = known.get(sequence, CHAINS[0])._replace(name=name)
      atoms = chain.atoms.copy()
      contacts = np.zeros((size, size))
      if sequence in known:
        cb = np.asarray(torsions.ideal_cb(chain.atoms))
        apart = np.linalg.norm(cb[:, None] - cb, axis=-1)
        contacts = (apart < 8).astype(float)
      else:
        contacts[0, -1] = 1
      plddt = np.full(size, 0.95 - 0.1 * number)
      yield Prediction(
        chain._replace(atoms=atoms), plddt, contacts, contacts, contacts, 0.5
      )


@pytest.fixture(scope='module')
def found():
  return protein_scores.score_chains(Perfect(), CHAINS, CHAINS, None, 1.0)


def test_contacts_stand_beside_their_controls(found):
  name = 'contacts P@L/5, separation >= 6'
  of_kind = lambda kind: [one.scores[kind][name] for one in found]
  # All residues 20 apart touch, in every chain.
  assert of_kind(MODEL) == of_kind(SEPARATION) == [1] * 4
  assert max(of_kind(SHUFFLED)) < 0.5
  assert set(found[0].scores[SHUFFLED]) == set(found[0].scores[SEPARATION])


def test_the_structure_of_a_perfect_prediction_is_right(found):
  for one in found:
    scores = one.scores[MODEL]
    assert scores['Q3'] == scores['lDDT'] == 1 and scores['clashes'] == 0
    np.testing.assert_allclose(one.confidence[:, 1], 1)


def test_relaxation_does_not_change_what_the_model_says_of_contacts(found):
  for one in found:
    model, relaxed = one.scores[MODEL], one.scores[RELAXED]
    for name in model:
      is_same = model[name] == relaxed.get(name)
      assert is_same or not name.startswith('contacts'), name
    # Relaxation pulls residues 19 and 20 together. They are far apart.
    assert relaxed['RMSD'] > 1 > model['RMSD'] and 'pLDDT' not in relaxed


def test_calibration_compares_plddt_with_lddt(found):
  known = protein_scores.confidence(found)
  assert [count for _, count, _, _ in known.bins] == [40] * 4
  # The lDDT is 1, and the pLDDT is 0.95, 0.85, 0.75 and 0.65.
  assert known.error == pytest.approx((0.05 + 0.15 + 0.25 + 0.35) / 4)
  assert np.isnan(known.by_residue)  # The lDDT is constant.


def test_a_shuffled_sequence_has_the_same_residues():
  one, two = (protein_scores._shuffled('ACDEFGHIKL', seed) for seed in (0, 0))
  assert one == two != 'ACDEFGHIKL' and sorted(one) == list('ACDEFGHIKL')


def test_violations_are_found():
  whole = HELIX
  assert set(protein_scores._violations(whole).values()) == {0}
  atoms = whole.atoms.copy()
  atoms[20:, :, 2] += 5  # This breaks the bond between residues 19 and 20.
  broken = protein_scores._violations(whole._replace(atoms=atoms))
  assert broken['wrong peptide bond'] == pytest.approx(2 / 40)
  flat = whole._replace(atoms=np.zeros_like(whole.atoms))
  assert protein_scores._violations(flat)['clashing residue'] == 1


def test_the_page_and_the_text_have_all_controls(found, tmp_path):
  text = protein_scores_page.as_text(found, 'a command')
  assert 'separation' in text and 'shuffled' in text
  assert 'calibration error 0.200' in text
  page = protein_scores_page.write(
    tmp_path, Origin('m', '0' * 64), found, 'a command'
  )
  assert 'mean lDDT' in page.read_text()
