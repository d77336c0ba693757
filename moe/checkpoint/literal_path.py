"""Paths whose own names are never read as patterns."""

import glob
from collections.abc import Iterator

from etils import epath

from moe.checkpoint import integrity


class LiteralPath(type(epath.Path())):
  """A local path whose `glob` takes the path itself as it is spelt.

  Orbax finds the parts that processes have written with `directory.glob`, and
  epath joins directory and pattern before it looks. In a directory such as
  `lr[3e-3]` it finds nothing, and Orbax commits a checkpoint without weights.
  """

  def glob(self, pattern: str) -> Iterator[epath.Path]:
    """Files below this directory that match a pattern relative to it."""
    return (self / name for name in glob.glob(pattern, root_dir=self))


def of(directory: epath.Path) -> epath.Path:
  """A directory to hand to Orbax; one on an object store stays as it is."""
  if integrity.on_object_store(directory):
    return directory
  return LiteralPath(directory)
