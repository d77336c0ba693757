"""Reads secondary structure out of the trunk of a folding model.

The trunk is frozen. A small network predicts helix, strand or coil of a residue
from the trunk's state of this residue. The baseline is the same network on the
names of the neighbouring residues.
"""

from collections.abc import Sequence

import numpy as np

from moe.evaluate import comparison, probe, structures
from moe.evaluate.score import Score
from moe.modalities import residues
from moe.modalities.protein import Chain
from moe.runs.folded import FoldingModel

# Residues on each side that the baseline reads.
REACH = 8
_UNIT = 'share of residues'


def scores(
  model: FoldingModel,
  training: Sequence[Chain],
  held_out: Sequence[Chain],
  command: str,
) -> list[Score]:
  """Q3, the share of residues with the right secondary structure.

  The truth comes from biotite's P-SEA (Labesse et al. 1997,
  https://doi.org/10.1093/bioinformatics/13.3.291). Residues to which P-SEA
  gives no structure are left out.

  Args:
    model: the model.
    training: whole chains that train the probes.
    held_out: whole chains that are scored.
    command: the command that gives the same numbers again.

  Returns:
    Four scores: Q3 of the most frequent structure as the only answer, Q3 of a
    probe on the trunk, Q3 of a probe on a window of residues, and the
    difference between these two probes.
  """
  train, test = (
    [structures.secondary_structure(chain) for chain in chains]
    for chains in (training, held_out)
  )
  flat = np.concatenate(train)
  is_known = flat >= 0
  majority = np.bincount(flat[is_known]).argmax()
  guesses = {'majority': [np.full(kinds.size, majority) for kinds in test]}
  for name, features_of in (
    ('trunk', model.states),
    (f'window of {2 * REACH + 1} residues', _windows),
  ):
    features = np.concatenate(features_of(training))
    trained = probe.train(features[is_known], flat[is_known], 3)
    guesses[name] = [trained.labels(x) for x in features_of(held_out)]
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
  trunk, window = list(right)[1:]
  less = right[trunk] - right[window]
  return [
    *found,
    comparison.of_shares('Q3, trunk less window', less, sizes, command, _UNIT),
  ]


def _windows(chains: Sequence[Chain]) -> list[np.ndarray]:
  """For each chain, one-hot names of the residues around each residue.

  Each array is [I, 17 * 22]. A place beyond an end of the chain has a name of
  its own.
  """
  beyond = residues.NUM_CODES
  found = []
  for chain in chains:
    padded = np.pad(chain.codes, REACH, constant_values=beyond)
    width = 2 * REACH + 1
    around = np.lib.stride_tricks.sliding_window_view(padded, width)
    one_hot = np.eye(beyond + 1, dtype=np.float32)[around]
    found.append(one_hot.reshape(len(around), -1))
  return found
