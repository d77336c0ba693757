"""Tasks of residues and of 3Di letters."""

import numpy as np
import pytest

from moe.modalities import protein
from tasks import chain_tasks, registry
from tests import protein_data


@protein_data.has_data
def test_letters_do_not_depend_on_the_place_of_the_chain():
  records = chain_tasks.ChainRecords().records('validation')
  record = next(records)
  chain = next(chain_tasks.proteins.Chains().chains('validation'))
  assert chain.name == record['name']
  turned = chain.atoms[..., [1, 2, 0]] + np.float32(5)  # A proper rotation.
  found = chain_tasks.letters_3di(chain._replace(atoms=turned))
  assert found.size == chain.codes.size
  np.testing.assert_array_equal(found, record['letters'])
  mirror = chain_tasks.letters_3di(chain._replace(atoms=-chain.atoms))
  assert (mirror != record['letters']).mean() > 0.1


def test_chains_that_are_left_out_are_counted_with_the_reason(monkeypatch):
  of_size = lambda size: protein.of_backbone(
    'c', 'A' * size, np.zeros((size, 4, 3))
  )
  made = type('C', (), {'chains': lambda self, _: map(of_size, (29, 255, 256))})
  monkeypatch.setattr(chain_tasks.proteins, 'Chains', made)
  source = chain_tasks.ChainRecords()
  assert [r['codes'].size for r in source.records('train')] == [255]
  reasons = 'fewer than 30 residues', 'more than 255 residues'
  assert source.left_out('train') == dict.fromkeys(reasons, 1)


def test_a_residue_without_backbone_has_the_letter_of_no_structure():
  chain = protein.of_backbone('c', 'AAAAAA', np.zeros((6, 4, 3)))
  mask = np.zeros_like(chain.mask)
  letters = chain_tasks.letters_3di(chain._replace(mask=mask))
  assert letters.tolist() == [2] * 6


def test_a_letter_has_the_place_of_the_next_residue():
  record = {'codes': np.arange(3), 'letters': np.arange(3)}
  task = registry.TASKS['proteins_3di']
  document = dict(zip(task.features, task.document_fn(record), strict=True))
  assert document['place'].tolist() == [1, 2, 3, 2, 3, 4]


@pytest.mark.parametrize(
  'name', ['chains_and_poems', 'masked_chains_and_poems']
)
def test_a_quarter_of_the_rows_are_poems(name):
  rates = registry.RATES[name]
  assert list(rates) == list(registry.MIXTURES[name])
  assert rates['poems_shi'] / sum(rates.values()) == pytest.approx(0.25)


def test_places_do_not_count_as_characters():
  source = type('S', (), {'records': lambda self, split: [{'codes': [1, 2]}]})
  task = registry.Task(
    'few', source(), ('targets', 'place'), lambda r: (r['codes'], [1, 2]), []
  )
  assert task.num_chars == 2
