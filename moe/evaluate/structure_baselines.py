"""Baselines for predicted structures.

They are an ideal helix, a compact random walk, and the nearest training chain.
An alignment of the sequences says which residue gets which atom of that chain.
Contacts have one more baseline: how often residues touch at each separation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe.evaluate import structures
from moe.modalities import similarity, torsions
from moe.modalities.protein import Chain

# A chain is novel if its best alignment with a training chain scores less than
# this, see `Nearest.score`. Local alignments never score less, so they would
# make no further chain novel.
NOVEL_BELOW = 60


def helix(size: int) -> np.ndarray:
  """CA atoms [I, 3] of an alpha helix; a residue adds 100 degrees and 1.5 A."""
  turn = np.deg2rad(100) * np.arange(size)
  return np.stack(
    [2.28 * np.cos(turn), 2.28 * np.sin(turn), 1.5 * np.arange(size)], axis=-1
  )


def random_walk(size: int, seed: int) -> np.ndarray:
  """CA atoms [I, 3] of a random walk that is as compact as a real protein.

  The radius of gyration is 2.2 x length^0.38 Angstrom (Skolnick et al. 1997).
  """
  random = np.random.default_rng([seed, size])
  steps = random.normal(size=(size, 3))
  points = np.cumsum(steps, axis=0)
  points -= points.mean(axis=0)
  radius = np.sqrt(np.mean(np.sum(points**2, axis=-1)))
  return points * (2.2 * size**0.38 / radius)


def contact_shares(training: Sequence[Chain], longest: int) -> np.ndarray:
  """Share [longest] of pairs that touch, by their separation in the chain.

  Args:
    training: chains with known structures.
    longest: residues of the longest chain that is scored.
  """
  sizes = [chain.codes.size for chain in training]
  # One call for all chains: JAX compiles for each shape.
  atoms = np.concatenate([chain.atoms for chain in training])
  cb = np.split(np.asarray(torsions.ideal_cb(atoms)), np.cumsum(sizes)[:-1])
  pairs, touching = np.zeros(longest), np.zeros(longest)
  for chain, points in zip(training, cb, strict=True):
    known = np.flatnonzero(chain.has_backbone)
    apart = known - known[:, None]
    near = structures.contacts(points[known])
    is_used = (apart > 0) & (apart < longest)
    for total, chosen in ((pairs, is_used), (touching, is_used & near)):
      total += np.bincount(apart[chosen], minlength=longest)
  return touching / np.maximum(pairs, 1)


class Nearest(NamedTuple):
  """The training chain that is nearest to a chain.

  Attributes:
    name: name of the training chain.
    score: score of the alignment, with BLOSUM62 and the gap penalties 10 to
      open a gap and 1 to extend it. Gaps at the ends are free.
    identity: share of equal residues among the aligned ones.
    points: [I, 3], a CA atom for each residue of the chain, see `threaded`.
  """

  name: str
  score: int
  identity: float
  points: np.ndarray


def nearest(chain: Chain, training: Sequence[Chain]) -> Nearest:
  """Finds the training chain with the best alignment.

  Every training chain is aligned, since a filter by short words loses some of
  the best ones. The alignment covers the whole chains: a local one leaves the
  ends of the chain without points.

  Args:
    chain: the chain.
    training: at least one chain.
  """
  aligned = lambda other: similarity.align(
    chain.sequence, other.sequence, is_local=False
  )
  scores = [aligned(other).score for other in training]
  best_chain = training[int(np.argmax(scores))]
  best = aligned(best_chain)
  pairs = best.trace[(best.trace >= 0).all(axis=1)]
  same = chain.codes[pairs[:, 0]] == best_chain.codes[pairs[:, 1]]
  is_placed = best_chain.mask[:, 1]
  known = pairs[is_placed[pairs[:, 1]]]
  if not len(known):  # For example, all residues of the chain are unknown.
    known = np.array([[0, np.argmax(is_placed)]])
  return Nearest(
    best_chain.name,
    int(best.score),
    float(same.mean()) if same.size else 0.0,
    threaded(chain.codes.size, known[:, 0], best_chain.atoms[known[:, 1], 1]),
  )


def threaded(size: int, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Makes points [I, 3] of all residues from the points of some residues.

  Points between two known ones lie on a straight line. Before the first and
  after the last known point, a straight line leads away from the centre, with
  3.8 Angstrom per residue.

  Args:
    size: I, number of residues of the chain.
    rows: int [N], increasing, the residues with a known point.
    points: [N, 3], the known points.
  """
  place = np.arange(size)
  made = np.stack(
    [np.interp(place, rows, points[:, dim]) for dim in range(3)], axis=-1
  )
  centre = points.mean(axis=0)
  for end, step in ((rows[0], -1), (rows[-1], 1)):
    out = made[end] - centre
    out = out / max(np.linalg.norm(out), 1e-6)
    beyond = np.arange(end, -1 if step < 0 else size, step)
    made[beyond] = made[end] + 3.8 * np.abs(beyond - end)[:, None] * out
  return made
