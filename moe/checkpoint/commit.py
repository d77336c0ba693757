"""How a step becomes visible as a whole, and how it is removed as a whole.

Orbax writes into `<step>.orbax-checkpoint-tmp`; when every array is there,
`integrity.json` is written and flushed, and one rename makes the step visible.
An object store has no rename: there `commit_success.txt` is written last
instead. That file is empty, so it needs no hash.
"""

import dataclasses
import logging
import os
import threading

import orbax.checkpoint as ocp
from etils import epath

from moe import failpoints
from moe.checkpoint import integrity, listing, literal_path

_TEMPORARY = ocp.path.atomicity.TMP_DIR_SUFFIX
# The index of a step's arrays; without it no array can be read.
_MANIFEST = 'manifest.ocdbt'


class _RenameCommit(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """Commit on a file system: seal, then rename."""

  async def finalize(self) -> None:
    _check_whole(self.get())
    integrity.seal(self.get())
    failpoints.reach('commit.sealed')
    self.get().rename(self.get_final())
    failpoints.reach('commit.visible')
    integrity.sync(self.get_final().parent)


class _MarkerCommit(ocp.path.atomicity.CommitFileTemporaryPath):
  """Commit on an object store: seal, then write the marker."""

  async def finalize(self) -> None:
    _check_whole(self.get())
    integrity.seal(self.get())
    failpoints.reach('commit.sealed')
    (self.get() / listing.MARKER).write_text('')


def _check_whole(directory: epath.Path) -> None:
  """Raises ValueError unless the arrays of a step can be found."""
  if not (directory / 'state' / _MANIFEST).exists():
    raise ValueError(f'Orbax has written no state/{_MANIFEST}')
  failpoints.reach('commit.whole')


class _StateHandler(ocp.PyTreeCheckpointHandler):
  """Writes the arrays, whatever characters the directory's name has."""

  async def async_save(
    self, directory: epath.Path, args: ocp.args.PyTreeSave
  ) -> list[ocp.future.Future]:
    """Copies the arrays to the host and starts to write them."""
    futures = await super().async_save(directory, args=args)
    failpoints.reach('save.arrays')
    return futures

  def finalize(self, directory: epath.Path) -> None:
    """Joins what the processes have written."""
    failpoints.reach('save.written')
    super().finalize(literal_path.of(directory))
    failpoints.reach('save.merged')


@ocp.args.register_with_handler(_StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.PyTreeSave):
  """The arrays to write; Orbax finds the handler by this type."""


@ocp.args.register_with_handler(_StateHandler, for_restore=True)
@dataclasses.dataclass
class _StateRestore(ocp.args.PyTreeRestore):
  """Never used, but Orbax refuses a handler that can only save."""


def _is_wanted(record: logging.LogRecord) -> bool:
  """False for a log line of an Orbax thread: it repeats an error we raise."""
  is_main = record.threadName == threading.main_thread().name
  return is_main or f'{os.sep}orbax{os.sep}' not in record.pathname


def orbax_checkpointer(directory: epath.Path) -> ocp.AsyncCheckpointer:
  """The Orbax object that writes and commits steps, in its own threads."""
  logging.getLogger('absl').addFilter(_is_wanted)
  is_remote = integrity.on_object_store(directory)
  handler = ocp.CompositeCheckpointHandler(
    # Compression shrinks trained weights by a fifth at most, and on a small
    # machine it takes half of the processor from the training steps.
    state=_StateHandler(use_ocdbt=True, use_compression=False),
    meta=ocp.JsonCheckpointHandler(),
  )
  return ocp.AsyncCheckpointer(
    handler,
    temporary_path_class=_MarkerCommit if is_remote else _RenameCommit,
    # The directory is made in the foreground: if that failed in the background,
    # the writers would wait five minutes for it and keep the process alive.
    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    # The write blocks, because nothing may change in a step after it is sealed.
    checkpoint_metadata_store=ocp.metadata.metadata_store(
      enable_write=True, blocking_write=True
    ),
  )


def sweep(directory: epath.Path) -> None:
  """Removes what killed or failed saves and removals have left behind."""
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
  """Removes a step; a kill leaves nothing that looks like a step."""
  path = directory / str(step)
  failpoints.reach('remove.begin')
  # First the step becomes invisible, then its files are removed.
  if integrity.on_object_store(path):
    (path / listing.MARKER).unlink()
  else:
    path = path.rename(directory / f'{step}{_TEMPORARY}')
  failpoints.reach('remove.hidden')
  for part in path.iterdir():
    part.rmtree() if part.is_dir() else part.unlink()
    failpoints.reach('remove.half')
  path.rmtree()
