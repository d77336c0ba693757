"""Scores of a predicted structure against the true one, from CA atoms.

Residue i is compared with residue i, without an alignment. The lDDT of a mirror
image is 1, so `chirality` compares a prediction with its mirror image.
"""

from collections.abc import Iterator

import numpy as np

from moe.modalities import residues
from moe.modalities.protein import Chain

# Residues are in contact if their CB atoms are nearer than this, in Angstrom.
CONTACT = 8.0
_CUTOFF = 15.0
_GDT = (1.0, 2.0, 4.0, 8.0)
# Number of fits that refine the best superposition of the TM-score.
_REFINEMENTS = 20


def _distances(points: np.ndarray) -> np.ndarray:
  return np.linalg.norm(points[:, None] - points[None], axis=-1)


def _separation(size: int) -> np.ndarray:
  return np.abs(np.arange(size)[:, None] - np.arange(size))


def lddt(
  points: np.ndarray, true: np.ndarray, least_separation: int = 1
) -> float:
  """The lDDT of CA atoms (Mariani et al. 2013), from 0 to 1.

  Args:
    points: [I, 3], predicted.
    true: [I, 3].
    least_separation: pairs of residues i and j with |i - j| below this are left
      out.

  Returns:
    The share of the pairs nearer than 15 Angstrom in `true` whose distance is
    right within a threshold, as a mean over four thresholds; NaN if there is no
    such pair.
  """
  wanted = _distances(true)
  near = (wanted < _CUTOFF) & (_separation(len(true)) >= least_separation)
  if not near.any():
    return float('nan')
  error = np.abs(_distances(points) - wanted)[near]
  return float(np.mean([np.mean(error < t) for t in (0.5, 1, 2, 4)]))


def lddt_by_residue(points: np.ndarray, true: np.ndarray) -> np.ndarray:
  """The lDDT [I] of each CA atom, from 0 to 1; NaN without a near residue."""
  wanted = _distances(true)
  near = (wanted < _CUTOFF) & (_separation(len(true)) >= 1)
  error = np.abs(_distances(points) - wanted)[..., None]
  kept = (error < np.array([0.5, 1, 2, 4])).mean(axis=-1)
  count = near.sum(axis=1)
  total = np.where(near, kept, 0).sum(axis=1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def superpose(
  points: np.ndarray, true: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
  """Rotates and shifts all points so that they fit `true` best.

  Kabsch (1976), https://doi.org/10.1107/S0567739476001873.

  Args:
    points: [I, 3].
    true: [I, 3].
    weights: [I], weight of the squared distance of each point; None for equal
      ones.
  """
  weights = np.ones(len(points)) if weights is None else weights
  share = (weights / weights.sum())[:, None]
  centre, true_centre = (points * share).sum(axis=0), (true * share).sum(axis=0)
  product = (share * (points - centre)).T @ (true - true_centre)
  left, _, right = np.linalg.svd(product)
  turn = np.diag([1, 1, np.sign(np.linalg.det(left @ right))])
  return (points - centre) @ left @ turn @ right + true_centre


def rmsd(points: np.ndarray, true: np.ndarray) -> float:
  """Root mean squared distance in Angstrom after superposition."""
  apart = superpose(points, true) - true
  return float(np.sqrt(np.mean(np.sum(apart**2, axis=-1))))


def chirality(points: np.ndarray, true: np.ndarray) -> float:
  """RMSD of the mirror image minus RMSD of `points`.

  It is above 0 if the points fit better than their mirror image.
  """
  return rmsd(points * np.array([1, 1, -1]), true) - rmsd(points, true)


def tm_scale(length: int) -> float:
  """The distance d0 of the TM-score, in Angstrom; at least 0.5."""
  return max(0.5, 1.24 * np.cbrt(max(length, 16) - 15) - 1.8)


def _fits(points: np.ndarray, true: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the distances [I] of points and true points for many superpositions.

  This is the search of the TM-score (Zhang and Skolnick 2004). It superposes
  the whole chain or a fragment first, then all residues that are now near their
  true places, and so on.
  """
  size = len(true)
  reach = max(4.5, min(8.0, tm_scale(size)))
  parts = sorted({size, size // 2, size // 4, min(size, 8)}, reverse=True)
  for part in (p for p in parts if p >= 4):
    for begin in range(0, size - part + 1, max(1, part // 2)):
      place = np.arange(size)
      chosen = (begin <= place) & (place < begin + part)
      for _ in range(12):
        moved = superpose(points, true, chosen)
        apart = np.linalg.norm(moved - true, axis=-1)
        yield apart
        limit, nearer = reach, apart < reach
        while nearer.sum() < 3:  # Fewer points do not determine a rotation.
          limit += 0.5
          nearer = apart < limit
        if np.array_equal(nearer, chosen):
          break
        chosen = nearer


def tm_and_gdt(points: np.ndarray, true: np.ndarray) -> tuple[float, float]:
  """(TM-score, GDT_TS), both from 0 to 1, without an alignment of sequences.

  Each score is the best over many superpositions. GDT_TS takes the best
  superposition for each of its thresholds 1, 2, 4 and 8 Angstrom. The best one
  of the TM-score is refined: short chains have a small distance scale, and no
  set of near points has the right superposition.
  """
  scale = tm_scale(len(true))
  terms = lambda apart: 1 / (1 + (apart / scale) ** 2)
  tm, best, counts = 0.0, None, np.zeros(len(_GDT))
  for apart in _fits(points, true):
    score = float(terms(apart).mean())
    if score > tm:
      tm, best = score, apart
    counts = np.maximum(counts, [np.mean(apart <= t) for t in _GDT])
  # A term is a convex function of the squared distance, with the slope
  # -term^2 / scale^2. So no fit with the weights term^2 has a lower score. The
  # score is 0 if no part of the chain is long enough for a fit.
  for _ in range(_REFINEMENTS if tm > 0 else 0):
    moved = superpose(points, true, terms(best) ** 2)
    best = np.linalg.norm(moved - true, axis=-1)
    tm = max(tm, float(terms(best).mean()))
  return tm, float(counts.mean())


def contacts(cb: np.ndarray) -> np.ndarray:
  """Bool [I, I], whether residues with the CB atoms [I, 3] touch."""
  return _distances(cb) < CONTACT


def contact_precision(
  score: np.ndarray, cb: np.ndarray, least_separation: int, part: int = 5
) -> float:
  """Share of true contacts among the I / part pairs with the highest scores.

  Args:
    score: [I, I], such as the probability of a contact.
    cb: [I, 3], true CB atoms.
    least_separation: least |i - j| of the residues i and j of a pair.
    part: 1, 2 or 5.

  Returns:
    The precision; NaN if the chain has no such pair.
  """
  size = len(cb)
  pairs = np.argwhere(np.triu(_separation(size) >= least_separation))
  if not len(pairs):
    return float('nan')
  values = score[pairs[:, 0], pairs[:, 1]]
  best = pairs[np.argsort(-values, kind='stable')[: max(1, size // part)]]
  return float(contacts(cb)[best[:, 0], best[:, 1]].mean())


def nearness(points: np.ndarray) -> np.ndarray:
  """Scores [I, I] for `contact_precision`: near pairs have high scores."""
  return -_distances(points)


def neighbour_steps(points: np.ndarray) -> np.ndarray:
  """Distances of neighbouring CA atoms; about 3.8 Angstrom in real proteins."""
  return np.linalg.norm(np.diff(points, axis=0), axis=-1)


def num_clashes(points: np.ndarray, least: float = 3.0) -> int:
  """Number of CA pairs closer than `least` Angstrom, except neighbours."""
  near = _distances(points) < least
  return int(np.triu(near & (_separation(len(points)) > 1)).sum())


def secondary_structure(chain: Chain) -> np.ndarray:
  """The kind of each residue by P-SEA, which reads CA atoms alone.

  Args:
    chain: a chain. A gap in its numbers breaks every distance across it.

  Returns:
    int [I]: 0 helix, 1 strand, 2 coil, -1 unknown, as without a CA atom.
  """
  from biotite import structure  # Takes half a second to import.

  size = chain.codes.size
  atoms = structure.AtomArray(size)
  atoms.coord = np.where(chain.mask[:, 1:2], chain.atoms[:, 1], np.nan)
  atoms.chain_id[:] = 'A'
  atoms.res_id[:] = chain.numbers + 1
  atoms.res_name[:] = [(*residues.NAMES, 'UNK')[code] for code in chain.codes]
  atoms.atom_name[:] = 'CA'
  atoms.element[:] = 'C'
  return np.array(
    ['abc'.find(kind) if kind else -1 for kind in structure.annotate_sse(atoms)]
  )


def q3(chain: Chain, points: np.ndarray) -> float:
  """Share of residues with the secondary structure of the true chain.

  Args:
    chain: the true chain, with all CA atoms.
    points: [I, 3], predicted CA atoms.

  Returns:
    The share, among the residues with a known structure in `chain`; NaN if
    there are none.
  """
  atoms = chain.atoms.copy()
  atoms[:, 1] = points
  true = secondary_structure(chain)
  is_known = true >= 0
  if not is_known.any():
    return float('nan')
  found = secondary_structure(chain._replace(atoms=atoms))
  return float(np.mean(found[is_known] == true[is_known]))
