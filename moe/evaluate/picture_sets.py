"""How close a set of drawn pictures is to a set of real ones.

The distances of sets are between features, [N, F], of the independent network
of `judge.py`. The Frechet distance in these features is called FD-own, since it
cannot be compared with the FID of the literature.
"""

import numpy as np

from moe.evaluate import comparison
from moe.evaluate.score import Score

_ROWS = 1024
_PERCENT = 5.0


def frechet_distance(a_NF: np.ndarray, b_NF: np.ndarray) -> float:
  """The squared Frechet distance of two Gaussians fitted to features.

  Heusel et al. (2017), https://arxiv.org/abs/1706.08500: the squared distance
  of the means plus tr(A + B - 2 (A B)^(1/2)) of the covariances. Instead of the
  root of A B we take the root of A^(1/2) B A^(1/2), which is symmetric and has
  the same trace. Eigenvalues below 0 are rounding errors, so we set them to 0.

  Args:
    a_NF: features of at least 2 pictures.
    b_NF: features of at least 2 other pictures.
  """
  a_NF, b_NF = (_checked(features) for features in (a_NF, b_NF))
  apart = a_NF.mean(axis=0) - b_NF.mean(axis=0)
  a_FF, b_FF = (
    np.atleast_2d(np.cov(features, rowvar=False)) for features in (a_NF, b_NF)
  )
  values, vectors = np.linalg.eigh(a_FF)
  root_FF = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  shared = np.linalg.eigvalsh(root_FF @ b_FF @ root_FF)
  trace = np.trace(a_FF) + np.trace(b_FF)
  trace -= 2 * np.sqrt(np.maximum(shared, 0)).sum()
  return float(max(0.0, apart @ apart + trace))


def kernel_distance(a_NF: np.ndarray, b_NF: np.ndarray) -> float:
  """KID: the unbiased squared maximum mean discrepancy of two sets.

  Binkowski et al. (2018), https://arxiv.org/abs/1801.01401, with their kernel
  (x y / F + 1)^3. The estimate has no bias for small sets, so it may be below
  0.

  Args:
    a_NF: features of at least 2 pictures.
    b_NF: features of at least 2 other pictures.
  """
  a_NF, b_NF = (_checked(features) for features in (a_NF, b_NF))

  def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3

  def within(x: np.ndarray) -> float:
    """The mean of the kernel over pairs of different pictures."""
    k = kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

  across = kernel(a_NF, b_NF).mean()
  return float(within(a_NF) + within(b_NF) - 2 * across)


def two_sets(
  real_NF: np.ndarray, num: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses two disjoint sets of real pictures; their distance is the floor.

  The Frechet distance is smaller for larger sets. So a set of drawn pictures
  can only be compared with a floor for equally many pictures.

  Args:
    real_NF: features of at least 2 * `num` real pictures.
    num: number of pictures in each set.
    seed: seed of the random choice.

  Raises:
    ValueError: if there are too few pictures.
  """
  if num < 2 or len(real_NF) < 2 * num:
    raise ValueError(
      f'A floor needs two sets of {num} real pictures, and 2 in each, got'
      f' {len(real_NF)} pictures: draw fewer, or give more real ones.'
    )
  chosen = np.random.default_rng(seed).permutation(len(real_NF))[: 2 * num]
  return real_NF[chosen[:num]], real_NF[chosen[num:]]


def scores(
  drawn_NF: np.ndarray, real_NF: np.ndarray, name: str, command: str
) -> list[Score]:
  """Distances of drawn pictures to real ones, and of real ones to each other.

  The distances are the Frechet distance (FD-own) and KID. All sets have equally
  many pictures: as many as were drawn, but at most half of the real ones. Each
  feature is divided by its standard deviation over the real pictures. Without
  this, large features would rule the cubic kernel of KID, and its noise would
  be larger than the distance. If the deviation of a feature is below the median
  deviation, the feature is divided by the median. So a feature that is 0 for
  nearly all real pictures does not decide the distance.

  Args:
    drawn_NF: features of drawn pictures.
    real_NF: features of real held-out pictures.
    name: name of the pictures; the name of each score begins with it.
    command: the command that gives the same numbers again.

  Returns:
    Four scores; [] if there are fewer than 2 drawn or 4 real pictures.
  """
  num = min(len(drawn_NF), len(real_NF) // 2)
  if num < 2:
    return []
  scale_F = np.std(real_NF, axis=0, dtype=np.float64)
  # Some units of the network are the same for all pictures.
  alive = scale_F[scale_F > 0]
  scale_F = np.maximum(scale_F, np.median(alive) if alive.size else 1)
  drawn_NF, real_NF = drawn_NF / scale_F, real_NF / scale_F
  chosen = np.random.default_rng(1).permutation(len(real_NF))[:num]
  pairs = {
    'drawn against real': (drawn_NF[:num], real_NF[chosen]),
    'real against real': two_sets(real_NF, num),
  }
  distances = {'FD-own': frechet_distance, 'KID': kernel_distance}
  return [
    comparison.of_sets(
      f'{name}: {distance}, {what}',
      lambda a, b, pair=pair, of=of: of(pair[0][a], pair[1][b]),
      (num, num),
      command,
      'distance',
    )
    for distance, of in distances.items()
    for what, pair in pairs.items()
  ]


def nearest(
  pictures: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the nearest of `others` for each picture.

  Args:
    pictures: [N, ...], pixels or features.
    others: [M, ...], pixels or features of other pictures.

  Returns:
    (distance [N], index in `others` [N]). The distance is the root of the mean
    squared difference.
  """
  flat = lambda a: np.asarray(a, np.float32).reshape(len(a), -1)
  a = flat(pictures)
  best, number = np.full(len(a), np.inf), np.zeros(len(a), int)
  for first in range(0, len(others), _ROWS):
    b = flat(others[first : first + _ROWS])
    # The squared norm of a picture is a term of all its distances. It does not
    # change which distance is smallest, so it is left out.
    distances = np.square(b).sum(axis=1) - 2 * a @ b.T
    at = distances.argmin(axis=1)
    found = distances[np.arange(len(a)), at]
    number = np.where(found < best, first + at, number)
    best = np.minimum(found, best)
  difference = a - flat(others[number])
  return np.sqrt(np.square(difference).mean(axis=1)), number


def is_nearer(drawn_N: np.ndarray, held_out_M: np.ndarray) -> np.ndarray:
  """Whether each drawn picture is suspiciously near to a training picture.

  A drawn picture is suspicious if it is nearer than 95% of the held-out
  pictures. If a model copies nothing, about 5% of its pictures are suspicious.
  If it draws smooth prototypes, more are. So people must look at the pairs.

  Args:
    drawn_N: distance of each drawn picture to the nearest training picture.
    held_out_M: the same distance of each real held-out picture.

  Returns:
    bool [N].
  """
  return drawn_N < np.percentile(held_out_M, _PERCENT)


def _checked(features: np.ndarray) -> np.ndarray:
  """The features in float64.

  Raises:
    ValueError: if the shape is not [N, F] with N of at least 2.
  """
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(
      'A distance of sets needs features [N, F] of at least 2 pictures, got'
      f' {features.shape}: draw more.'
    )
  return np.asarray(features, np.float64)
