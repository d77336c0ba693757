"""A file of JSON objects, one per line, in ascending order of their `step`.

A log without a record has no file. A kill leaves the file readable, because one
write adds a whole line. When a killed run resumes, it cuts off everything after
its last checkpoint, including an incomplete line.

A log may have millions of records. So a run that resumes reads it backwards,
and only as far as it must.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import Any

from moe import failpoints, json_text

# Bytes that are read at a time when a log is read backwards.
BLOCK = 2**16


class RecordLog:
  """An open log to which records are appended.

  Attributes:
    last: the newest record in the file, None if it is empty.
  """

  def __init__(self, path: str | os.PathLike, resume_step: int):
    """Opens a log and cuts off all records after `resume_step`.

    A file that would be empty is deleted.
    """
    found = next(_backwards(path, resume_step), None)
    self.last, length = found or (None, 0)
    self._path = path
    self._file = None
    if found:
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
  records = []
  if not os.path.exists(path):
    return records
  with open(path, 'rb') as file:
    for line in file:
      record = _parsed(line)
      # A kill may leave half a line at the end.
      if record is None or not line.endswith(b'\n'):
        break
      records.append(record)
  return records


def newest_first(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """Yields the complete records of a log from the last to the first.

  Only the part of the file that holds the records is read. There are no records
  if the file does not exist.
  """
  return (record for record, _ in _backwards(path, math.inf))


def _backwards(
  path: str | os.PathLike, last_step: float
) -> Iterator[tuple[dict[str, Any], int]]:
  """Yields (record, number of bytes from the start of the file to its end).

  The newest of the records up to `last_step` comes first.
  """
  if not os.path.exists(path):
    return
  with open(path, 'rb') as file:
    begin, text = file.seek(0, os.SEEK_END), b''
    while begin:
      size = min(max(BLOCK, len(text)), begin)
      begin -= size
      file.seek(begin)
      text = file.read(size) + text
      # The first line may begin in an earlier block.
      first = text.find(b'\n') + 1 if begin else 0
      if begin and not first:
        continue
      # A kill may leave half a line at the end.
      *lines, half = text[first:].split(b'\n')
      end = begin + len(text) - len(half)
      for line in reversed(lines):
        record = _parsed(line)
        if record is not None and record['step'] <= last_step:
          yield record, end
        end -= len(line) + 1
      text = text[:first]


def _parsed(line: bytes) -> dict[str, Any] | None:
  """The record of a line; None if the line holds no record."""
  try:
    record = json_text.parse(line)
    return record if record['step'] < math.inf else None
  except (ValueError, KeyError, TypeError):
    return None


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
