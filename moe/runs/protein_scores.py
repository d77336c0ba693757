"""Scores a folding model on chains with known structures, beside baselines."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe.evaluate import structure_baselines as baselines
from moe.evaluate import structures
from moe.evaluate.score import Score
from moe.modalities import protein, torsions
from moe.modalities.protein import Chain
from moe.runs.folded import FoldingModel, Prediction

MODEL, HELIX, RANDOM, NEAREST = 'model', 'helix', 'random', 'nearest chain'
KINDS = (MODEL, HELIX, RANDOM, NEAREST)
_UNITS = {'RMSD': 'Angstrom', 'mirror RMSD - RMSD': 'Angstrom'}
_LOWER = ('RMSD', 'clashes', 'CA step off 3.8')
# (L / part, least separation) of the precision of contacts.
_CONTACTS = [(part, least) for least in (6, 12, 24) for part in (1, 2, 5)]


class ChainScores(NamedTuple):
  """Scores of one chain.

  Attributes:
    name: of the chain.
    length: its residues.
    nearest: name of the nearest training chain.
    alignment: score of the alignment with it.
    identity: share of equal residues in this alignment.
    scores: kind -> name -> value, of the model and the baselines.
  """

  name: str
  length: int
  nearest: str
  alignment: int
  identity: float
  scores: dict[str, dict[str, float]]

  @property
  def is_novel(self) -> bool:
    """Whether no training chain is similar."""
    return self.alignment < baselines.NOVEL_BELOW


def chosen(chains: Iterable[Chain], longest: int) -> list[Chain]:
  """The chains that are scored: whole ones without breaks.

  Raises:
    ValueError: if there are none.
  """
  found = [
    chain
    for chain in chains
    if chain.codes.size <= longest
    and chain.has_backbone.all()
    and not protein.num_breaks(chain)
  ]
  if not found:
    raise ValueError(
      f'No chain is whole and has at most --longest={longest} residues: raise'
      ' it, or give other chains.'
    )
  return found


def score_chains(
  model: FoldingModel,
  chains: Sequence[Chain],
  training: Sequence[Chain],
  recycles: int,
  memory_limit: float,
) -> list[ChainScores]:
  """Folds chains and scores them.

  Args:
    model: the model.
    chains: with known structures, from `chosen`.
    training: chains of the training, for the nearest one.
    recycles: how often a result is read again.
    memory_limit: GB that a batch may need.
  """
  # The names need not differ, and chains are folded in another order.
  sequences = {str(i): chain.sequence for i, chain in enumerate(chains)}
  found = {
    one.chain.name: one for one in model.fold(sequences, recycles, memory_limit)
  }
  return [
    _of_chain(chain, found[str(i)], training, i)
    for i, chain in enumerate(chains)
  ]


def _of_chain(
  chain: Chain, found: Prediction, training: Sequence[Chain], number: int
) -> ChainScores:
  true, size = chain.atoms[:, 1].astype(np.float64), chain.codes.size
  near = baselines.nearest(chain, training)
  points = {
    MODEL: found.chain.atoms[:, 1].astype(np.float64),
    HELIX: baselines.helix(size),
    RANDOM: baselines.random_walk(size, number),
    NEAREST: near.points,
  }
  scores = {kind: of_points(x, true) for kind, x in points.items()}
  cb = np.asarray(torsions.ideal_cb(chain.atoms))
  for part, least in _CONTACTS:
    name = f'contacts P@L/{part}, separation >= {least}'
    scores[MODEL][name] = structures.contact_precision(
      found.contacts, cb, least, part
    )
  scores[MODEL]['pLDDT'] = float(found.plddt.mean())
  return ChainScores(
    chain.name, size, near.name, near.score, near.identity, scores
  )


def of_points(points: np.ndarray, true: np.ndarray) -> dict[str, float]:
  """Scores of CA atoms [I, 3] against the true ones, by name."""
  tm, gdt = structures.tm_and_gdt(points, true)
  mirror = structures.chirality(points, true)
  steps = structures.neighbour_steps(points)
  return {
    'lDDT': structures.lddt(points, true),
    'lDDT, separation >= 12': structures.lddt(points, true, 12),
    'TM': tm,
    'GDT_TS': gdt,
    'RMSD': structures.rmsd(points, true),
    'mirror RMSD - RMSD': mirror,
    'mirror is worse': float(mirror > 0),
    'CA step off 3.8': float(np.mean(np.abs(steps - 3.8) > 0.2)),
    'clashes': float(structures.num_clashes(points)),
  }


def summarised(
  found: Sequence[ChainScores], command: str
) -> list[tuple[str, str, Score, tuple[float, float, float]]]:
  """(group, kind, mean score, quartiles) of every score.

  The groups are all chains, those with a similar training chain, and those
  without one.

  Args:
    found: scores of all chains.
    command: that gives them again.
  """
  groups = {
    'all': list(found),
    'similar': [one for one in found if not one.is_novel],
    'novel': [one for one in found if one.is_novel],
  }
  rows = []
  for group, members in groups.items():
    for kind in KINDS if members else ():
      for name in members[0].scores[kind]:
        values = np.array([one.scores[kind][name] for one in members])
        values = values[~np.isnan(values)]
        if not values.size:
          continue
        error = 1.96 * values.std() / np.sqrt(values.size)
        mean = float(values.mean())
        score = Score(
          f'{kind}: {name}',
          mean,
          mean - error,
          mean + error,
          int(values.size),
          command,
          _UNITS.get(name, ''),
          name not in _LOWER,
        )
        quartiles = tuple(np.quantile(values, (0.25, 0.5, 0.75)).tolist())
        rows.append((group, kind, score, quartiles))
  return rows


def confidence(found: Sequence[ChainScores]) -> float:
  """Pearson's correlation of mean pLDDT and lDDT; NaN for a constant."""
  plddt = [one.scores[MODEL]['pLDDT'] for one in found]
  lddt = [one.scores[MODEL]['lDDT'] for one in found]
  if len(found) < 3 or np.std(plddt) < 1e-9 or np.std(lddt) < 1e-9:
    return float('nan')
  return float(np.corrcoef(plddt, lddt)[0, 1])


def as_json(found: Sequence[ChainScores]) -> list[dict[str, Any]]:
  """Every chain with its scores, ready for JSON."""
  clean = lambda values: {
    name: None if np.isnan(value) else value for name, value in values.items()
  }
  return [
    {
      **one._asdict(),
      'is_novel': one.is_novel,
      'scores': {kind: clean(of) for kind, of in one.scores.items()},
    }
    for one in found
  ]
