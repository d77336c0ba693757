"""Keeps the messages of TensorFlow and of its libraries off standard error.

TensorFlow writes warnings while it is imported, before its log level applies,
and its copy of SentencePiece writes a line for every vocabulary. Users cannot
act on these messages. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows all of
them. Other levels have no effect. The import of JAX sets level 1 for this
process and its children, so such a level need not come from the user.
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
  """Keeps TensorFlow off GPUs, since it only reads files, and hides its log."""
  os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
  if os.environ.get(_LEVEL) != _ALL:
    os.environ[_LEVEL] = _ONLY_FATAL


@contextlib.contextmanager
def dropped() -> Iterator[None]:
  """Drops the output of C++ libraries to standard error, but not Python's."""
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
  """A copy of standard error for Python; never closed, since loggers use it."""
  return open(
    os.dup(_STDERR), 'w', buffering=1, encoding=encoding, errors=errors
  )
