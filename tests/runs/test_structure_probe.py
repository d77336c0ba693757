"""Secondary structure read out of residues and states."""

import numpy as np

from moe.evaluate import structure_baselines, structures
from moe.modalities import protein, residues
from moe.runs import structure_probe
from moe.runs.chain_states import ChainStates


def chain_of(points, sequence):
  coordinates = np.repeat(np.asarray(points, np.float32)[:, None], 4, axis=1)
  return protein.of_backbone('c', sequence, coordinates)


def told(chains):
  """States of two layers: noise, and one-hot vectors of the structure."""
  kinds = [structures.secondary_structure(chain).clip(0) for chain in chains]
  noise = np.random.default_rng(1)
  return [
    np.stack([noise.normal(size=(len(kind), 3)), np.eye(3)[kind]], axis=1)
    for kind in kinds
  ]


def test_a_helix_is_a_helix_and_a_zigzag_a_strand():
  helix = chain_of(structure_baselines.helix(20), 'A' * 20)
  kinds = structures.secondary_structure(helix)
  assert (kinds[2:-2] == 0).all()
  # Neighbours are 3.8 Angstrom apart.
  line = np.arange(20)[:, None] * np.array([3.3, 0, 0])
  line[1::2, 1] = 1.88
  kinds = structures.secondary_structure(chain_of(line, 'A' * 20))
  assert (kinds[2:-2] == 1).all()


def test_no_distance_crosses_a_gap():
  one = chain_of(structure_baselines.helix(12), 'A' * 12)
  line = np.arange(9)[:, None] * np.array([3.3, 0, 0])
  line[1::2, 1] = 1.88
  other = chain_of(line, 'A' * 9)
  both = [np.concatenate(pair) for pair in zip(one[1:], other[1:], strict=True)]
  both[1][12:] += 20  # Residues are missing between the two parts.
  joined = protein.Chain('c', *both)
  found = structures.secondary_structure(joined).tolist()
  parts = [structures.secondary_structure(part) for part in (one, other)]
  assert found == np.concatenate(parts).tolist()
  joined.mask[0, 1] = False
  assert structures.secondary_structure(joined)[0] == -1


def test_a_window_ends_at_the_ends_of_its_chain():
  found = structure_probe.windows([2, 9])
  assert found.shape == (11, 17)
  assert found[1].tolist() == [-1] * 7 + [0, 1] + [-1] * 8
  assert found[10].tolist() == list(range(2, 11)) + [-1] * 8


def test_states_that_tell_the_kind_win_over_random_residues():
  rng = np.random.default_rng(0)

  def chains(number):
    return [
      chain_of(structure_baselines.helix(40), ''.join(letters))
      if i % 2
      else chain_of(rng.normal(size=(40, 3)) * 30, ''.join(letters))
      for i, letters in enumerate(
        rng.choice(list(residues.LETTERS), (number, 40))
      )
    ]

  source = ChainStates('two layers', told, chains(40), None)
  found = structure_probe.scores(source, chains(10), 'c')
  values = {one.name: one.value for one in found}
  assert values['Q3, two layers, window of 17'] > 0.98
  assert values['Q3, states less names'] > 0.2
  assert values['Q3, majority'] < 0.6
