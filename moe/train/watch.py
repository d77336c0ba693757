"""Warnings about skipped steps, dropped tokens and unused experts."""

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np

WINDOW = 50  # Drops are averaged over this many steps.
DEAD_AFTER = 100  # An expert without tokens for this many logged steps is dead.
_MAX_NAMED = 8  # A warning names at most this many experts.


class Watch:
  """Follows the records of a run, and warns of each problem when it begins.

  Attributes:
    dead_LE: bool, whether an expert of a sparse layer got no token in the last
      DEAD_AFTER steps that logged loads; None for a dense model.
  """

  def __init__(self, drop_warning: float):
    """Makes a watch that has seen no record.

    Args:
      drop_warning: share of dropped rows above which there is a warning. A
        token has one row for each expert that it chooses.
    """
    self.dead_LE = None
    self._drop_warning = drop_warning
    self._dropped = collections.deque(maxlen=WINDOW)
    self._is_dropping = False
    self._steps = collections.deque(maxlen=DEAD_AFTER)  # Steps with loads.
    # For each expert, the number of steps with loads since its last token.
    self._idle_LE = None

  def resume(self, records: Iterable[dict[str, Any]]) -> None:
    """Reads the end of an old log, whose warnings were already shown.

    Args:
      records: the records of the log, the newest first. Only as many as needed
        are read.
    """
    newest, with_load, is_sparse = [], [], False
    for record in records:
      is_sparse |= 'dead_experts' in record
      if len(newest) < WINDOW:
        newest.append(record)
      if 'load' in record.get('layers', {}):
        with_load.append(record)
      # A record of a dense model has neither loads nor dead experts.
      wanted = DEAD_AFTER if is_sparse or with_load else 0
      if len(newest) == WINDOW and len(with_load) >= wanted:
        break
    for record in reversed(with_load[:DEAD_AFTER]):
      self._dead(record)
    for record in reversed(newest):
      self._drops(record)

  def see(self, record: dict[str, Any]) -> list[str]:
    """Reads a record and returns the warnings that it causes."""
    found = []
    if record.get('skipped'):
      found.append(
        f'step {record["step"]:,} was skipped, its loss or gradient was not'
        ' finite'
      )
    return [*found, *self._drops(record), *self._dead(record)]

  def _drops(self, record: dict[str, Any]) -> list[str]:
    fraction = record.get('dropped_fraction')
    if fraction is None:
      return []
    self._dropped.append(fraction)
    mean = sum(self._dropped) / len(self._dropped)
    if mean < self._drop_warning / 2:
      self._is_dropping = False
    is_sure = len(self._dropped) == WINDOW and mean > self._drop_warning
    if self._is_dropping or not is_sure:
      return []
    self._is_dropping = True
    return [
      f'{mean:.0%} of the routed tokens of the last {WINDOW} steps were'
      ' dropped: raise CAPACITY_FACTOR or LOAD_BALANCE'
    ]

  def _dead(self, record: dict[str, Any]) -> list[str]:
    if 'load' not in record.get('layers', {}):
      return []
    load_LE = np.asarray(record['layers']['load'])
    if self._idle_LE is None:
      self._idle_LE = np.zeros(load_LE.shape, int)
      self.dead_LE = np.zeros(load_LE.shape, bool)
    self._steps.append(record['step'])
    self._idle_LE = np.where(load_LE > 0, 0, self._idle_LE + 1)
    before_LE, self.dead_LE = self.dead_LE, self._idle_LE >= DEAD_AFTER
    span = self._steps[-1] - self._steps[0] + 1
    return [
      f'sparse layer {layer}: {_experts(self.dead_LE[layer])} got no tokens in'
      f' the last {span:,} steps: raise LOAD_BALANCE'
      for layer in np.flatnonzero((self.dead_LE & ~before_LE).any(axis=1))
    ]


def _experts(dead_E: np.ndarray) -> str:
  """The dead experts in words, such as 'experts 1, 2 and 3 more'."""
  numbers = np.flatnonzero(dead_E)
  named = ', '.join(map(str, numbers[:_MAX_NAMED]))
  rest = len(numbers) - _MAX_NAMED
  more = f' and {rest} more' if rest > 0 else ''
  return f'{"expert" if len(numbers) == 1 else "experts"} {named}{more}'
