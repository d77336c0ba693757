"""Keeps the messages of TensorFlow and of its libraries off standard error.

TensorFlow writes warnings while it is imported, before its log level applies,
and its copy of SentencePiece writes a line for every vocabulary. Users cannot
act on them. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows all of them; other
levels count as unset, since importing JAX sets the level to 1 for this process
and for its children.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_LEVEL = 'TF_CPP_MIN_LOG_LEVEL'
_ALL, _ONLY_FATAL = '0', '3'
_STDERR = 2  # The file descriptor that C++ libraries write to.


def set_up() -> None:
  """Keeps TensorFlow, which only reads files here, off devices and quiet."""
  os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
  if os.environ.get(_LEVEL) != _ALL:
    os.environ[_LEVEL] = _ONLY_FATAL


@contextlib.contextmanager
def dropped() -> Iterator[None]:
  """Drops what C++ libraries write to standard error; Python still writes."""
  if os.environ.get(_LEVEL) != _ONLY_FATAL:
    yield
    return
  before = sys.stderr
  before.flush()
  kept = os.dup(_STDERR)
  if _is_standard_error(before):
    sys.stderr = _python_stderr(before.encoding, before.errors)
  with open(os.devnull, 'w') as null:
    os.dup2(null.fileno(), _STDERR)
  try:
    yield
  finally:
    os.dup2(kept, _STDERR)
    os.close(kept)
    sys.stderr = before


def _is_standard_error(stream: TextIO) -> bool:
  try:
    return stream.fileno() == _STDERR
  except (OSError, ValueError):  # A stream in memory has no descriptor.
    return False


@functools.cache
def _python_stderr(encoding: str, errors: str | None) -> TextIO:
  """Standard error for Python alone; stays open, since loggers may keep it."""
  return open(
    os.dup(_STDERR), 'w', buffering=1, encoding=encoding, errors=errors
  )
