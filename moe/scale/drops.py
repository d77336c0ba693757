"""Expected share of rows that are dropped, before anything is trained.

A token sends A rows to A different experts. The load of an expert is its share
of all rows. Loads follow a Dirichlet distribution with mean 1 / E and a given
coefficient of variation: 0 is perfect balance, 0.3 a router that is not quite
balanced. With the loads fixed, the rows of one buffer vary by chance alone.
"""

import math

import numpy as np
from scipy import special

_POINTS = 400


def _overflow(trials: np.ndarray, chance: np.ndarray, slots: int) -> np.ndarray:
  """Mean of max(0, X - slots) for binomial X; `trials` may be fractional."""
  # E[X; X > s] = n q P(X' >= s), where X' has n - 1 trials. P(X >= s) with n
  # trials is the incomplete beta function I_q(s, n - s + 1) for any real n.
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
  """Share of rows that a buffer of `slots` rows drops.

  There are two cases. A fixed capacity per expert and routing group: `tokens`
  is M, `slots` is C and `held` is 1. Or one buffer for the `held` experts of a
  device, which all senders of the expert axis fill: `tokens` counts the tokens
  of all senders and `slots` the rows of the buffer. The summed load of h
  experts varies about 1 / sqrt(h) as much as that of one.

  Args:
    tokens: number of tokens that choose among the experts.
    num_active: A, experts of a token.
    num_experts: E.
    slots: rows in a buffer.
    held: experts that share the buffer.
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
      # The medians of _POINTS intervals of equal probability.
      parts = (np.arange(_POINTS) + 0.5) / _POINTS
      share = special.betaincinv(h * a, (E - h) * a, parts)
      share *= h / E / share.mean()
  # A token sends at most one row to each expert of the buffer.
  share = np.minimum(share, min(A, h) / A)
  mean = A * share
  # The mean of X (X - 1), where X rows of a token come to this buffer; 0 if h =
  # 1.
  pairs = A * (A - 1) * share**2 * (h - 1) / h * E / max(1, E - 1)
  # The binomial distribution with the mean and variance of the sum of X over
  # all tokens.
  chance = np.clip(mean - pairs / mean, 1e-12, 1.0)
  trials = tokens * mean / chance
  dropped = _overflow(trials, chance, slots).mean()
  return float(max(0.0, dropped) / (tokens * A * h / E))


def pooled_slots(
  tokens: int, num_active: int, parts: int, factor: float
) -> int:
  """Rows of a buffer that is `factor` times a device's even share."""
  return math.ceil(round(factor * tokens * num_active / parts, 6))
