"""Local paths whose names are never read as glob patterns."""

import glob
from collections.abc import Iterator

from etils import epath

from moe.checkpoint import integrity


class LiteralPath(type(epath.Path())):
  """A local path whose `glob` takes the path itself literally.

  Orbax calls `directory.glob` to find what each process has written. epath
  joins the directory and the pattern first, so the name of the directory
  becomes part of the pattern. In a directory such as `lr[3e-3]` nothing
  matches, and Orbax commits a checkpoint without weights.
  """

  def glob(self, pattern: str) -> Iterator[epath.Path]:
    """Files below this directory that match a pattern relative to it."""
    return (self / name for name in glob.glob(pattern, root_dir=self))


def of(directory: epath.Path) -> epath.Path:
  """The path to give to Orbax; a path on an object store stays as it is."""
  if integrity.on_object_store(directory):
    return directory
  return LiteralPath(directory)
