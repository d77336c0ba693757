"""Scores a folding model and baselines on chains with known structures."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moe.evaluate import structure_baselines as baselines
from moe.evaluate import structures
from moe.evaluate.score import Score
from moe.modalities import protein, torsions
from moe.modalities.protein import Chain
from moe.objectives import violations
from moe.runs.folded import FoldingModel, Prediction, padded, relaxed
from moe.types import Array

MODEL, HELIX, RANDOM, NEAREST = 'model', 'helix', 'random', 'nearest chain'
# The structures of the model after relaxation.
RELAXED = 'relaxed'
# These two kinds have only scores of contacts. The first is how often residues
# touch at each separation in the training chains. The second is what the model
# predicts for the residues in a random order.
SEPARATION, SHUFFLED = 'separation', 'shuffled'
KINDS = (MODEL, RELAXED, HELIX, RANDOM, NEAREST, SEPARATION, SHUFFLED)
_UNITS = {'RMSD': 'Angstrom', 'mirror RMSD - RMSD': 'Angstrom'}
_LOWER = (
  'RMSD',
  'clashes',
  'CA step off 3.8',
  'wrong peptide bond',
  'clashing residue',
)
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
    confidence: float [I, 2], pLDDT and lDDT of each residue.
  """

  name: str
  length: int
  nearest: str
  alignment: int
  identity: float
  scores: dict[str, dict[str, float]]
  confidence: np.ndarray

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
    if 1 < chain.codes.size <= longest
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
  sequences |= {
    f'{SHUFFLED} {i}': _shuffled(chain.sequence, i)
    for i, chain in enumerate(chains)
  }
  found = {
    one.chain.name: one for one in model.fold(sequences, recycles, memory_limit)
  }
  longest = max(chain.codes.size for chain in chains)
  shares = baselines.contact_shares(training, longest)
  return [
    _of_chain(
      chain,
      (found[str(i)], found[f'{SHUFFLED} {i}']),
      (training, shares),
      i,
    )
    for i, chain in enumerate(chains)
  ]


def _shuffled(sequence: str, seed: int) -> str:
  """The sequence with its residues in a random order."""
  return ''.join(np.random.default_rng(seed).permutation(list(sequence)))


def _of_chain(
  chain: Chain,
  folds: tuple[Prediction, Prediction],
  training: tuple[Sequence[Chain], np.ndarray],
  number: int,
) -> ChainScores:
  """Scores a chain.

  Args:
    chain: the true chain.
    folds: the prediction, and that of the shuffled sequence.
    training: the training chains, and `baselines.contact_shares` of them.
    number: seed of the random walk.
  """
  true, size = chain.atoms[:, 1].astype(np.float64), chain.codes.size
  near = baselines.nearest(chain, training[0])
  found, shuffled = folds
  made = {MODEL: found.chain, RELAXED: relaxed(found.chain)}
  points = {kind: x.atoms[:, 1].astype(np.float64) for kind, x in made.items()}
  points |= {
    HELIX: baselines.helix(size),
    RANDOM: baselines.random_walk(size, number),
    NEAREST: near.points,
  }
  scores = {kind: of_points(x, true) for kind, x in points.items()}
  for kind, x in points.items():
    scores[kind]['Q3'] = structures.q3(chain, x)
  apart = np.arange(size)
  touching = {kind: structures.nearness(x) for kind, x in points.items()} | {
    MODEL: found.contacts,
    # Relaxation does not change what the model says of contacts.
    RELAXED: found.contacts,
    SEPARATION: training[1][np.abs(apart - apart[:, None])],
    SHUFFLED: shuffled.contacts,
  }
  cb = np.asarray(torsions.ideal_cb(chain.atoms))
  for kind, score in touching.items():
    of_kind = scores.setdefault(kind, {})
    for part, least in _CONTACTS:
      name = f'contacts P@L/{part}, separation >= {least}'
      of_kind[name] = structures.contact_precision(score, cb, least, part)
  for kind, folded in made.items():
    scores[kind] |= _violations(folded)
  scores[MODEL]['pLDDT'] = float(found.plddt.mean())
  lddt = structures.lddt_by_residue(points[MODEL], true)
  return ChainScores(
    chain.name,
    size,
    near.name,
    near.score,
    near.identity,
    scores,
    np.stack([found.plddt, lddt], axis=1),
  )


@jax.jit
def _violated(*chain: Array) -> tuple[Array, Array]:
  """Bool [I] twice: wrong peptide bonds, and clashes, of each residue."""
  bonds, clashes = violations.bond_violations, violations.clashes
  return bonds(*chain)[1], clashes(*chain)[1]


def _violations(chain: Chain) -> dict[str, float]:
  """Shares of residues with violations, as AlphaFold 2 defines them."""
  size = chain.codes.size
  bonds, clashes = _violated(*padded(chain))
  return {
    'wrong peptide bond': float(np.mean(bonds[:size])),
    'clashing residue': float(np.mean(clashes[:size])),
  }


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


class Confidence(NamedTuple):
  """How well pLDDT tells lDDT.

  Attributes:
    by_chain: Pearson's correlation, over chains, of the mean pLDDT with the
      lDDT; NaN for fewer than three chains, and if one of the two is constant.
    by_residue: Pearson's correlation of pLDDT with lDDT over all residues.
    error: mean distance between pLDDT and lDDT over the bins, weighted by
      residues (expected calibration error, Guo et al. 2017,
      https://arxiv.org/abs/1706.04599).
    bins: (lower edge of pLDDT, residues, mean pLDDT, mean lDDT) of each bin
      that has residues.
  """

  by_chain: float
  by_residue: float
  error: float
  bins: list[tuple[float, int, float, float]]


def confidence(found: Sequence[ChainScores], num_bins: int = 10) -> Confidence:
  """Compares pLDDT with lDDT, over chains and over residues."""
  of_chains = [
    (x.scores[MODEL]['pLDDT'], x.scores[MODEL]['lDDT']) for x in found
  ]
  both = np.concatenate([one.confidence for one in found])
  both = both[~np.isnan(both).any(axis=1)]
  place = np.minimum((both[:, 0] * num_bins).astype(int), num_bins - 1)
  bins = [
    (number / num_bins, len(part), *part.mean(axis=0).tolist())
    for number in range(num_bins)
    if len(part := both[place == number])
  ]
  off = sum(count * abs(plddt - lddt) for _, count, plddt, lddt in bins)
  return Confidence(
    _pearson(np.array(of_chains)),
    _pearson(both),
    off / len(both) if len(both) else float('nan'),
    bins,
  )


def _pearson(pairs: np.ndarray) -> float:
  if len(pairs) < 3 or (pairs.std(axis=0) < 1e-9).any():
    return float('nan')
  return float(np.corrcoef(pairs.T)[0, 1])


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
      'confidence': [
        [round(float(plddt), 4), None if np.isnan(lddt) else round(lddt, 4)]
        for plddt, lddt in one.confidence
      ],
    }
    for one in found
  ]
