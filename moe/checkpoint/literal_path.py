"""A local path for Orbax that is safe if names contain glob characters."""

import glob
from collections.abc import Iterator

from etils import epath

from moe.checkpoint import integrity


class LiteralPath(type(epath.Path())):
  """A local path whose `glob` does not read the path itself as a pattern.

  Orbax calls `directory.glob` to find the files of each process. The `glob` of
  epath joins the directory and the pattern, so it reads the name of the
  directory as a part of the pattern. In a directory such as `lr[3e-3]` nothing
  matches, and Orbax commits a checkpoint without weights.
  """

  def glob(self, pattern: str) -> Iterator[epath.Path]:
    """Files below this directory whose relative paths match a pattern."""
    return (self / name for name in glob.glob(pattern, root_dir=self))


def of(directory: epath.Path) -> epath.Path:
  """Makes a local path a `LiteralPath`; returns a URL unchanged."""
  if integrity.on_object_store(directory):
    return directory
  return LiteralPath(directory)
