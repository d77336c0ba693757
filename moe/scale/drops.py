"""Expected share of rows that find no slot, before anything is trained.

A token sends k rows to k different experts. An expert's share of all rows is
its load; loads are Dirichlet distributed with mean 1 / E and a given
coefficient of variation: 0 is perfect balance, 0.3 a router that is not quite
balanced. Given the loads, what one buffer receives varies by chance alone.
"""

import math

import numpy as np
from scipy import special

_POINTS = 400


def _overflow(trials: np.ndarray, chance: np.ndarray, slots: int) -> np.ndarray:
  """Mean of max(0, X - slots) for X binomial; trials need not be whole."""
  # E[X; X > s] = n q P(X' >= s) with X' of n - 1 trials. P(X >= s) of n trials
  # is the incomplete beta function I_q(s, n - s + 1), which takes any n.
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
  """Share of rows that a buffer of `slots` rows turns away.

  Two cases. A fixed capacity per expert and routing group: `tokens` M of the
  group, `slots` C, `held` 1. A buffer pooled over the `held` experts of a
  device, filled by all senders of the expert axis: `tokens` of all of them,
  `slots` of the buffer; the loads of h experts together vary about 1 / sqrt(h)
  as much.

  Args:
    tokens: number of tokens that choose among the experts.
    num_active: k, experts of a token.
    num_experts: E.
    slots: rows that a buffer takes.
    held: experts that share the buffer.
    variation: standard deviation of the experts' loads over their mean.

  Returns:
    Expected dropped rows over all rows, in [0, 1].

  Raises:
    ValueError: if a number makes no sense.
  """
  k, E, h = num_active, num_experts, held
  if not (tokens > 0 and 0 < k <= E and 0 < h <= E and slots > 0):
    raise ValueError(
      f'tokens={tokens}, slots={slots}, num_active={k} <= num_experts={E} and'
      f' held={h} <= num_experts must be positive.'
    )
  if not 0 <= variation < math.sqrt(max(1, E - 1)):
    raise ValueError(
      f'variation={variation} must be at least 0 and below sqrt(E - 1), where'
      ' all rows go to one expert.'
    )
  share = np.array([h / E])
  if variation:
    # One share of Dirichlet(a, .., a) has the squared variation
    # (E - 1) / (E a + 1), and h shares together are Beta(h a, (E - h) a).
    a = ((E - 1) / variation**2 - 1) / E
    if h < E:
      # The middle of _POINTS parts of equal probability.
      parts = (np.arange(_POINTS) + 0.5) / _POINTS
      share = special.betaincinv(h * a, (E - h) * a, parts)
      share *= h / E / share.mean()
  # A token sends at most one row to each expert held.
  share = np.minimum(share, min(k, h) / k)
  mean = k * share
  # The mean of X (X - 1) for the rows X of a token that come here; 0 for h = 1.
  pairs = k * (k - 1) * share**2 * (h - 1) / h * E / max(1, E - 1)
  # The binomial distribution with the mean and the variance of X's sum.
  chance = np.clip(mean - pairs / mean, 1e-12, 1.0)
  trials = tokens * mean / chance
  dropped = _overflow(trials, chance, slots).mean()
  return float(max(0.0, dropped) / (tokens * k * h / E))


def pooled_slots(
  tokens: int, num_active: int, parts: int, factor: float
) -> int:
  """Rows of a buffer that is `factor` times a device's even share."""
  return math.ceil(round(factor * tokens * num_active / parts, 6))
