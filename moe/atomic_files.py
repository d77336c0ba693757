"""Writes files whole or not at all.

The content is written to a temporary file, which then replaces the old file in
one step. A reader gets the old content or the new content, never a part of it.
A write that fails leaves the old file. Nothing is flushed to the disk: after a
power failure the file may be old, new or empty.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from moe import failpoints

_TEMPORARY = re.compile(r'.+\.[0-9a-f]{32}\.tmp')


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file, which replaces `path` when the block ends.

  Args:
    path: the file to replace or create; its directory must exist.

  Yields:
    The open temporary file. After an error inside the block, it is removed and
    `path` does not change.

  Raises:
    OSError: if the file cannot be made, written or renamed.
  """
  # The name is unique, since processes on other hosts may write `path` too.
  temporary = f'{os.fspath(path)}.{uuid.uuid4().hex}.tmp'
  try:
    with open(temporary, 'wb') as f:
      yield f
    failpoints.reach('file.written')
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
  """Replaces or creates a file; text is encoded as UTF-8."""
  with replacing(path) as f:
    f.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, content: Any) -> None:
  """Replaces or creates a JSON file, indented by two spaces."""
  write_file(path, json.dumps(content, ensure_ascii=False, indent=2))


def sweep(directory: str | os.PathLike) -> None:
  """Removes the temporary files that killed processes have left.

  Args:
    directory: a directory in which no other process writes now.
  """
  for name in os.listdir(directory):
    if _TEMPORARY.fullmatch(name):
      # The thread that writes this run's lock file may have renamed its
      # temporary file in the meantime.
      with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, name))
