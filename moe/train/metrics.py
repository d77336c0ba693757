"""Turns the (sum, weight) pairs of a step into numbers for people."""

from typing import Any

import jax
import numpy as np

from moe.objectives.objective import Facts, Measure
from moe.types import MODALITIES, Pair

# Name of a metric of sparse layers -> its name in the record of a step.
RENAMED = {
  'dropped': 'dropped_fraction',
  'dropped_receiver': 'dropped_receiver_fraction',
  'padding': 'padding_fraction',
  **{f'dropped_{m}': f'dropped_fraction_{m}' for m in MODALITIES},
}

_LOADS = {f'load_{m}' for m in MODALITIES}


def summarize(
  metrics: dict[str, Any],
  score: Measure | None = None,
  facts: Facts | None = None,
) -> dict[str, Any]:
  """The record of one step.

  Args:
    metrics: name -> (sum, weight), arrays on device or host.
    score: measure whose number is added to the record.
    facts: what the score needs to know about the data.

  Returns:
    A record ready for JSON: scalars by name. For a sparse model it also has
    'layers', lists with an entry for each sparse layer: load [L][E] as shares
    of the rows, max_over_mean and variation (standard deviation over mean) of
    the load, and each metric with one number per layer, such as entropy.
    dropped_fraction counts all drops, dropped_receiver_fraction only drops at
    the receiver; both are shares of the valid rows. padding_fraction is a share
    of the tokens. bytes_exchanged is for one forward pass of one microbatch.
    If the router tells modalities apart, experts_used_text is the number of
    experts of a layer that get text, as a mean over the layers. 'layers' then
    has load_text, the load of the text rows. Other modalities have the same.
  """
  metrics = jax.device_get(metrics)
  record = {
    name: float(_mean(pair))
    for name, pair in metrics.items()
    if not np.ndim(pair[0])
  }
  value = score and score.value(metrics, facts or {})
  if value is not None:
    record[score.name] = value
  layers = {
    RENAMED.get(name, name): _mean(pair)
    for name, pair in metrics.items()
    if np.ndim(pair[0]) == 1
  }
  if 'dropped' in metrics:
    lost, rows = (np.sum(a, dtype=np.float64) for a in metrics['dropped'])
    record['dropped_fraction'] = float(lost / max(rows, 1.0))
  record |= _by_modality(metrics)
  if 'load' in metrics:
    sums_LE, rows_L = (np.asarray(a, np.float64) for a in metrics['load'])
    load_LE = sums_LE / np.maximum(rows_L, 1.0)[:, None]
    mean_L = np.maximum(load_LE.mean(1), 1e-9)
    max_L = load_LE.max(1) / mean_L
    record['load_imbalance'] = float(max_L.mean())
    balance = {'max_over_mean': max_L, 'variation': load_LE.std(1) / mean_L}
    layers = {'load': load_LE, **balance, **layers}
    for name in _LOADS & metrics.keys():
      sums_LE, rows_L = (np.asarray(a, np.float64) for a in metrics[name])
      layers[name] = sums_LE / np.maximum(rows_L, 1.0)[:, None]
  if layers:
    record['layers'] = {key: _rounded(a) for key, a in layers.items()}
  return record


def _by_modality(metrics: dict[str, Any]) -> dict[str, float]:
  """Drops and used experts of each modality that the router tells apart."""
  found = {}
  for name in MODALITIES:
    if f'dropped_{name}' in metrics:
      lost, rows = (np.sum(a) for a in metrics[f'dropped_{name}'])
      found[f'dropped_fraction_{name}'] = float(lost / max(rows, 1.0))
    if f'load_{name}' in metrics:
      sums_LE = np.asarray(metrics[f'load_{name}'][0])
      found[f'experts_used_{name}'] = float((sums_LE > 0).sum(axis=1).mean())
  return found


def _mean(pair: Pair) -> np.ndarray:
  return np.asarray(pair[0] / np.maximum(pair[1], 1e-9), np.float64)


def _rounded(a: np.ndarray) -> list:
  return np.round(a, 5).tolist()


class Mean:
  """Adds up the (sum, weight) pairs of many batches, in float64 on the host."""

  def __init__(self):
    self._sums = {}

  def add(self, metrics: dict[str, Any]) -> None:
    """Adds the pairs of one batch."""
    for name, pair in jax.device_get(metrics).items():
      pair = tuple(np.asarray(a, np.float64) for a in pair)
      old = self._sums.get(name)
      self._sums[name] = (
        pair if old is None else (old[0] + pair[0], old[1] + pair[1])
      )

  def pairs(self) -> dict[str, Any]:
    """The added-up pairs of all batches."""
    return self._sums
