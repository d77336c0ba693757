"""Commits and removes checkpoint steps; an incomplete step is never visible.

On a file system Orbax writes a step into `<step>.orbax-checkpoint-tmp`. When
every array is written, we write and flush `integrity.json`. Then one rename
makes the step visible. An object store cannot rename. There Orbax writes into
`<step>`, and our last file is `commit_success.txt`. It is empty, so it needs no
hash.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable

import orbax.checkpoint as ocp
from etils import epath

from moe import failpoints
from moe.checkpoint import integrity, listing, literal_path

_TEMPORARY = ocp.path.atomicity.TMP_DIR_SUFFIX
# OCDBT's index of the arrays of a step. No array can be read without this file.
_MANIFEST = 'manifest.ocdbt'


class _RenameCommit(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """Commits a step on a file system: writes its hashes, then renames it."""

  before = staticmethod(lambda: None)

  async def finalize(self) -> None:
    _seal(self.get(), self.before)
    self.get().rename(self.get_final())
    failpoints.reach('commit.visible')
    integrity.sync(self.get_final().parent)


class _MarkerCommit(ocp.path.atomicity.CommitFileTemporaryPath):
  """Commits a step on an object store: seals it, then writes the marker."""

  before = staticmethod(lambda: None)

  async def finalize(self) -> None:
    _seal(self.get(), self.before)
    (self.get() / listing.MARKER).write_text('')


def _seal(directory: epath.Path, before: Callable[[], None]) -> None:
  """Writes the hashes of a whole step, after a call of `before`."""
  _check_whole(directory)
  before()
  integrity.seal(directory)
  failpoints.reach('commit.sealed')


def _check_whole(directory: epath.Path) -> None:
  """Raises ValueError if the index of a step's arrays is missing."""
  if not (directory / 'state' / _MANIFEST).exists():
    raise ValueError(f'Orbax has written no state/{_MANIFEST}')
  failpoints.reach('commit.whole')


class _StateHandler(ocp.PyTreeCheckpointHandler):
  """Writes the arrays, even if the directory's name has glob characters."""

  async def async_save(
    self, directory: epath.Path, args: ocp.args.PyTreeSave
  ) -> list[ocp.future.Future]:
    """Copies the arrays to the host and starts to write them."""
    futures = await super().async_save(directory, args=args)
    failpoints.reach('save.arrays')
    return futures

  def finalize(self, directory: epath.Path) -> None:
    """Merges the files of all processes into one index."""
    failpoints.reach('save.written')
    super().finalize(literal_path.of(directory))
    failpoints.reach('save.merged')


@ocp.args.register_with_handler(_StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.PyTreeSave):
  """The arrays to write; Orbax chooses `_StateHandler` by this type."""


@ocp.args.register_with_handler(_StateHandler, for_restore=True)
@dataclasses.dataclass
class _StateRestore(ocp.args.PyTreeRestore):
  """We never use this class, but Orbax refuses a handler that can only save."""


def _is_wanted(record: logging.LogRecord) -> bool:
  """Whether to log a record. Orbax's threads log errors that we also raise."""
  is_main = record.threadName == threading.main_thread().name
  return is_main or f'{os.sep}orbax{os.sep}' not in record.pathname


def orbax_checkpointer(
  directory: epath.Path, before_commit: Callable[[], None]
) -> ocp.AsyncCheckpointer:
  """Makes the Orbax object that writes and commits steps in its own threads.

  Args:
    directory: directory of the steps.
    before_commit: is called in process 0 before a step becomes visible. If it
      fails, the step is not committed.
  """
  logging.getLogger('absl').addFilter(_is_wanted)
  is_remote = integrity.on_object_store(directory)
  kind = _MarkerCommit if is_remote else _RenameCommit
  handler = ocp.CompositeCheckpointHandler(
    # Compression makes trained weights at most a fifth smaller. On a small
    # machine it would take half of the CPU time away from training.
    state=_StateHandler(use_ocdbt=True, use_compression=False),
    meta=ocp.JsonCheckpointHandler(),
  )
  return ocp.AsyncCheckpointer(
    handler,
    # Orbax takes a class, and makes an object of it for each step.
    temporary_path_class=type(
      kind.__name__, (kind,), {'before': staticmethod(before_commit)}
    ),
    # We create the directory before the background save starts. If this failed
    # in the background, the writers would wait five minutes for the directory,
    # and the process could not end.
    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    # `save` waits until Orbax has written this metadata, because no file of a
    # step may change after the step is sealed.
    checkpoint_metadata_store=ocp.metadata.metadata_store(
      enable_write=True, blocking_write=True
    ),
  )


def sweep(directory: epath.Path) -> None:
  """Removes the incomplete steps and files that failed processes have left."""
  if not directory.exists():
    return
  is_remote = integrity.on_object_store(directory)
  for path in directory.iterdir():
    unmarked = is_remote and path.name.isdigit() and path.is_dir()
    unmarked = unmarked and not (path / listing.MARKER).exists()
    if _TEMPORARY in path.name or unmarked:
      path.rmtree()
    elif path.name.isdigit():
      listing.late_temporary(path).unlink(missing_ok=True)


def remove(directory: epath.Path, step: int) -> None:
  """Removes a step; a kill in the middle leaves no visible incomplete step."""
  path = directory / str(step)
  failpoints.reach('remove.begin')
  # The step becomes invisible before its files are removed.
  if integrity.on_object_store(path):
    (path / listing.MARKER).unlink()
  else:
    path = path.rename(directory / f'{step}{_TEMPORARY}')
  failpoints.reach('remove.hidden')
  for part in path.iterdir():
    part.rmtree() if part.is_dir() else part.unlink()
    failpoints.reach('remove.half')
  path.rmtree()
