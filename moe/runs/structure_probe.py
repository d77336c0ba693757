"""Reads secondary structure out of the states of a trunk.

The trunk is frozen. A small network predicts helix, strand or coil of a residue
from the states of this residue and of its neighbours. The baseline is the same
network on the names of the same residues. So both read the same window, and the
difference shows what the states know besides the names.
"""

from collections.abc import Sequence

import numpy as np

from moe.evaluate import comparison, probe, structures
from moe.evaluate.score import Score
from moe.modalities import residues
from moe.modalities.protein import Chain
from moe.runs.chain_states import ChainStates

# Residues on each side that both networks read.
REACH = 8
_UNIT = 'share of residues'


def scores(
  source: ChainStates, held_out: Sequence[Chain], command: str
) -> list[Score]:
  """Q3, the share of residues with the right secondary structure.

  The truth comes from biotite's P-SEA (Labesse et al. 1997,
  https://doi.org/10.1093/bioinformatics/13.3.291). Residues to which P-SEA
  gives no structure are left out.

  Args:
    source: the states of residues, and the chains that train the probes.
    held_out: the chains that are scored.
    command: the command that gives the same numbers again.

  Returns:
    Four scores: Q3 of the most frequent structure as the only answer, Q3 of a
    probe on the states, Q3 of a probe on the names of the residues, and the
    difference between these two probes.
  """
  train, test = (
    [structures.secondary_structure(chain) for chain in chains]
    for chains in (source.training, held_out)
  )
  flat = np.concatenate(train)
  is_known = flat >= 0
  majority = np.bincount(flat[is_known]).argmax()
  guesses = {'majority': [np.full(kinds.size, majority) for kinds in test]}
  around = windows([kinds.size for kinds in train])[is_known]
  window = f'window of {2 * REACH + 1}'
  for name, features_of in (
    (f'{source.name}, {window}', source.states),
    (f'names of residues, {window}', _names),
  ):
    features = np.concatenate(features_of(source.training))
    trained = probe.train(features, flat[is_known], 3, around)
    guesses[name] = [
      trained.labels(x, windows([len(x)])) for x in features_of(held_out)
    ]
  sizes = np.array([(kinds >= 0).sum() for kinds in test])
  right = {
    name: np.array(
      [
        ((guess == kinds) & (kinds >= 0)).sum()
        for guess, kinds in zip(found, test, strict=True)
      ]
    )
    for name, found in guesses.items()
  }
  found = [
    comparison.of_shares(f'Q3, {name}', counts, sizes, command, _UNIT)
    for name, counts in right.items()
  ]
  states, names = list(right)[1:]
  less = right[states] - right[names]
  return [
    *found,
    comparison.of_shares('Q3, states less names', less, sizes, command, _UNIT),
  ]


def windows(sizes: Sequence[int]) -> np.ndarray:
  """For each residue, the numbers of the residues around it, int [N, 17].

  The residues of all chains are numbered one after the other. Beyond an end of
  its own chain, the number is -1.

  Args:
    sizes: number of residues of each chain.
  """
  found, begin = [], 0
  for size in sizes:
    place = np.arange(size)[:, None] + np.arange(-REACH, REACH + 1)
    is_inside = (place >= 0) & (place < size)
    found.append(np.where(is_inside, begin + place, -1))
    begin += size
  return np.concatenate(found)


def _names(chains: Sequence[Chain]) -> list[np.ndarray]:
  """For each chain, one-hot names of its residues, [I, 21]."""
  one_hot = np.eye(residues.NUM_CODES, dtype=np.float32)
  return [one_hot[chain.codes] for chain in chains]
