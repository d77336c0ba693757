"""From the (sum, weight) pairs of a step to the numbers people read."""

import math
from typing import Any

import jax
import numpy as np

# Arrays by sparse layer; everything else is a scalar.
PER_LAYER = ('load', 'entropy', 'confidence', 'dropped')


def summarize(
  metrics: dict[str, Any], chars_per_token: float | None = None
) -> dict[str, Any]:
  """One step's record.

  Args:
    metrics: name -> (sum, weight), arrays on device or host.
    chars_per_token: of the training data, for bits per character.

  Returns:
    JSON-ready: scalars by name, and 'layers' with lists by sparse layer, where
    there are such: load [L][E] as shares of the rows, dropped_fraction,
    entropy, confidence.
  """
  metrics = jax.device_get(metrics)
  mean = lambda name: np.asarray(
    metrics[name][0] / np.maximum(metrics[name][1], 1e-9), np.float64
  )
  record = {
    name: float(mean(name)) for name in metrics if name not in PER_LAYER
  }
  if chars_per_token:
    bits = record['cross_entropy'] / math.log(2) / chars_per_token
    record['bits_per_char'] = bits
  if 'load' in metrics:
    sums_LE, rows_L = (np.asarray(a, np.float64) for a in metrics['load'])
    load_LE = sums_LE / np.maximum(rows_L, 1.0)[:, None]
    dropped, rows = metrics['dropped']
    record['dropped_fraction'] = float(dropped.sum() / max(rows.sum(), 1.0))
    record['load_imbalance'] = float(np.mean(load_LE.max(1) * load_LE.shape[1]))
    record['layers'] = {
      'load': _rounded(load_LE),
      'dropped_fraction': _rounded(mean('dropped')),
      'entropy': _rounded(mean('entropy')),
      'confidence': _rounded(mean('confidence')),
    }
  return record


def _rounded(a: np.ndarray) -> list:
  return np.round(a, 5).tolist()


class Mean:
  """Adds pairs over batches on the host, in float64."""

  def __init__(self):
    self._sums = {}

  def add(self, metrics: dict[str, Any]) -> None:
    """Adds one batch's pairs."""
    for name, pair in jax.device_get(metrics).items():
      pair = tuple(np.asarray(a, np.float64) for a in pair)
      old = self._sums.get(name)
      self._sums[name] = (
        pair if old is None else (old[0] + pair[0], old[1] + pair[1])
      )

  def pairs(self) -> dict[str, Any]:
    """The sums."""
    return self._sums
