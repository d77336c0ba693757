"""Secondary structure read out of residues and states."""

import numpy as np

from moe.evaluate import structure_baselines, structures
from moe.modalities import protein, residues
from moe.runs import structure_probe


def chain_of(points, sequence):
  coordinates = np.repeat(np.asarray(points, np.float32)[:, None], 4, axis=1)
  return protein.of_backbone('c', sequence, coordinates)


class Told:
  """A model whose states are one-hot vectors of the secondary structure."""

  def states(self, chains):
    return [
      np.eye(3)[structures.secondary_structure(chain).clip(0)]
      for chain in chains
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

  found = structure_probe.scores(Told(), chains(40), chains(10), 'c')
  values = {one.name: one.value for one in found}
  assert values['Q3, trunk'] > 0.99
  assert values['Q3, trunk less window'] > 0.2
  assert values['Q3, majority'] < 0.6
