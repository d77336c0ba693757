"""A file of JSON objects, one per line, in ascending order of their `step`.

A log without a record has no file. A kill leaves the file readable, because one
write adds a whole line. When a killed run resumes, it cuts off everything after
its last checkpoint, including an incomplete line.
"""

import json
import math
import os
from typing import Any

from moe import failpoints, json_text


class RecordLog:
  """An open log to which records are appended.

  Attributes:
    last: the newest record in the file, None if it is empty.
    steps: the steps that have a record.
  """

  def __init__(self, path: str | os.PathLike, resume_step: int):
    """Opens a log and cuts off all records after `resume_step`.

    A file that would be empty is deleted.
    """
    records, length = _scan(path, resume_step)
    self.last = records[-1] if records else None
    self.steps = {record['step'] for record in records}
    self._path = path
    self._file = None
    if records:
      os.truncate(path, length)
    elif os.path.exists(path):
      os.remove(path)

  def append(self, record: dict[str, Any]) -> None:
    """Writes one record; a number that is not finite becomes null."""
    line = json.dumps(_finite(record), allow_nan=False, ensure_ascii=False)
    content = line.encode() + b'\n'
    try:
      failpoints.reach('log.append')
      if self._file is None:
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(self._path, mode, 0o644)
      while content:  # If the disk is nearly full, a write adds only a part.
        content = content[os.write(self._file, content) :]
      failpoints.reach('log.appended')
    except OSError as error:
      raise ValueError(
        f'{self._path} must be writable, got "{error.strerror}" at step'
        f' {record["step"]}: free some space and run the same command again.'
      ) from error
    self.last = record
    self.steps.add(record['step'])

  def sync(self) -> None:
    """Flushes the file to the disk, or to the bucket that gcsfuse mounts."""
    if self._file is not None:
      os.fsync(self._file)

  def close(self) -> None:
    """Flushes the file to the disk and closes it."""
    if self._file is not None:
      self.sync()
      os.close(self._file)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """All complete records of a log; none if the file does not exist."""
  return _scan(path, math.inf)[0]


def _scan(
  path: str | os.PathLike, last_step: float
) -> tuple[list[dict[str, Any]], int]:
  """(records up to a step, number of bytes from the start to their end)."""
  records, length = [], 0
  if not os.path.exists(path):
    return records, length
  with open(path, 'rb') as file:
    for line in file:
      try:
        record = json_text.parse(line)
        is_kept = record['step'] <= last_step and line.endswith(b'\n')
      except (ValueError, KeyError, TypeError):
        break  # A kill may leave half a line at the end.
      if not is_kept:
        break
      records.append(record)
      length += len(line)
  return records, length


def _finite(value: Any) -> Any:
  """Converts a value for JSON: arrays to lists, NaN and infinities to None."""
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if isinstance(value, dict):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
