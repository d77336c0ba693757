"""Predicts the share of dropped rows without training.

A token sends A rows to A different experts. The load of an expert is its share
of all rows. We assume that loads follow a Dirichlet distribution with mean 1 /
E and a given coefficient of variation: 0 is perfect balance, 0.3 is a router
that is not quite balanced. For given loads, the number of rows in a buffer
still varies, since tokens choose at random.
"""

import math

import numpy as np
from scipy import special

_POINTS = 400


def _overflow(trials: np.ndarray, chance: np.ndarray, slots: int) -> np.ndarray:
  """Mean of max(0, X - slots) for a binomial X; `trials` can be fractional."""
  # X counts the successes of n trials with chance q. E[X; X > s] is
  # n q P(X' >= s), where X' has n - 1 trials. P(X >= s) is the incomplete beta
  # function I_q(s, n - s + 1), which is defined for any real n.
  at_least = lambda n, s: np.where(
    n - s + 1 > 0, special.betainc(s, np.maximum(n - s + 1, 1e-9), chance), 0.0
  )
  above = at_least(trials - 1, slots)
  return trials * chance * above - slots * at_least(trials, slots + 1)


def expected_share(
  tokens: int,
  num_active: int,
  num_experts: int,
  slots: int,
  held: int = 1,
  variation: float = 0.0,
) -> float:
  """Expected share of rows that are dropped, because a buffer is full.

  There are two cases:
  - Each expert has a fixed capacity in each routing group. Then `tokens` is M,
    `slots` is C and `held` is 1.
  - The `held` experts of a device share one buffer, which receives rows from
    all devices of the expert axis. Then `tokens` counts the tokens of all these
    devices, and `slots` counts the rows of the buffer. The summed load of these
    experts has about 1 / sqrt(held) times the relative variation of one load.

  Args:
    tokens: number of tokens that choose among the experts.
    num_active: A, experts of a token.
    num_experts: E.
    slots: rows in a buffer.
    held: number of experts that share the buffer.
    variation: standard deviation of the experts' loads over their mean.

  Returns:
    Expected dropped rows over all rows, in [0, 1].

  Raises:
    ValueError: if a number is out of range.
  """
  A, E, h = num_active, num_experts, held
  if not (tokens > 0 and 0 < A <= E and 0 < h <= E and slots > 0):
    raise ValueError(
      f'tokens={tokens}, slots={slots}, num_active={A} <= num_experts={E} and'
      f' held={h} <= num_experts must be positive.'
    )
  if not 0 <= variation < math.sqrt(max(1, E - 1)):
    raise ValueError(
      f'variation={variation} must be at least 0 and below sqrt(E - 1), where'
      ' all rows go to one expert.'
    )
  share = np.array([h / E])
  if variation:
    # One share of Dirichlet(a, .., a) has the squared coefficient of variation
    # (E - 1) / (E a + 1). The sum of h shares follows Beta(h a, (E - h) a).
    a = ((E - 1) / variation**2 - 1) / E
    if h < E:
      # We average over _POINTS loads: the medians of intervals of equal
      # probability.
      parts = (np.arange(_POINTS) + 0.5) / _POINTS
      share = special.betaincinv(h * a, (E - h) * a, parts)
      share *= h / E / share.mean()
  # The share is limited, since a token sends at most one row to each expert of
  # the buffer.
  share = np.minimum(share, min(A, h) / A)
  mean = A * share
  # Let X be the number of rows that one token sends to the buffer. `pairs` is
  # the mean of X (X - 1), which is 0 if h = 1.
  pairs = A * (A - 1) * share**2 * (h - 1) / h * E / max(1, E - 1)
  # We approximate the sum of X over all tokens by a binomial distribution with
  # the same mean and variance.
  chance = np.clip(mean - pairs / mean, 1e-12, 1.0)
  trials = tokens * mean / chance
  dropped = _overflow(trials, chance, slots).mean()
  return float(max(0.0, dropped) / (tokens * A * h / E))


def pooled_slots(
  tokens: int, num_active: int, parts: int, factor: float
) -> int:
  """Rows of a buffer: `factor` times the even share of rows of a device."""
  return math.ceil(round(factor * tokens * num_active / parts, 6))
