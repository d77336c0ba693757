"""Scores a folding model and baselines on chains with known structures."""

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
# (part, least separation) of each precision of contacts. A precision is the
# share of true contacts among the L / part pairs with the highest scores, for a
# chain of L residues.
_CONTACTS = [(part, least) for least in (6, 12, 24) for part in (1, 2, 5)]


class ChainScores(NamedTuple):
  """Scores of one chain.

  Attributes:
    name: name of the chain.
    length: number of residues.
    nearest: name of the nearest training chain.
    alignment: score of the alignment with the nearest training chain.
    identity: share of equal residues in this alignment.
    scores: kind, one of `KINDS` -> name of the score -> value.
  """

  name: str
  length: int
  nearest: str
  alignment: int
  identity: float
  scores: dict[str, dict[str, float]]

  @property
  def is_novel(self) -> bool:
    """Whether no training chain is similar to this chain."""
    return self.alignment < baselines.NOVEL_BELOW


def chosen(chains: Iterable[Chain], longest: int) -> list[Chain]:
  """Chooses the chains to score: short, with all backbone atoms, unbroken.

  Raises:
    ValueError: if there is no such chain.
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
  recycles: int | None,
  memory_limit: float,
) -> list[ChainScores]:
  """Folds chains and scores them.

  Args:
    model: the model.
    chains: chains with known structures, from `chosen`.
    training: the training chains; the nearest one is a baseline.
    recycles: number of recycles, see `FoldingModel.fold`.
    memory_limit: GB that the longest chain may need.
  """
  # Two chains may have the same name, and `fold` changes the order. So we give
  # the chains numbers.
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
  """Scores CA atoms [I, 3] against the true atoms [I, 3]; values by name."""
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
  """Returns (group, kind, mean score, quartiles) of every score.

  The groups are 'all' chains, 'similar' chains, and 'novel' chains, see
  `ChainScores.is_novel`.

  Args:
    found: scores of all chains.
    command: the command that gives the same numbers again.
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
  """Pearson's correlation of mean pLDDT and lDDT over chains.

  NaN for fewer than three chains, and if one of the two is constant.
  """
  plddt = [one.scores[MODEL]['pLDDT'] for one in found]
  lddt = [one.scores[MODEL]['lDDT'] for one in found]
  if len(found) < 3 or np.std(plddt) < 1e-9 or np.std(lddt) < 1e-9:
    return float('nan')
  return float(np.corrcoef(plddt, lddt)[0, 1])


def as_json(found: Sequence[ChainScores]) -> list[dict[str, Any]]:
  """Lists all chains with their scores, for JSON. NaN becomes None."""
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
