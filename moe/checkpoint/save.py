"""Saves checkpoints: one Orbax directory for each step, committed atomically.

  DIRECTORY/<step>/state/          the training state (Orbax, OCDBT)
                  /meta/metadata   JSON: step, metrics, versions, and what the
                                   caller records (data manifest, config, ...)
                  /integrity.json  size and SHA-256 of each file above
                  /late_metrics.json  metrics measured after the commit

`moe.checkpoint.commit` makes a step visible when all its files are written. If
a save is killed, the next start of the run removes its files. A step is sound
only if every hash agrees. No file lists the steps.
"""

import errno
import functools
import importlib.metadata
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from moe import failpoints, outages
from moe.checkpoint import commit, integrity, listing, restore
from moe.types import PyTree

_LOG = logging.getLogger(__name__)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'wudao-moe')


class SaveError(ValueError):
  """A checkpoint could not be written; earlier checkpoints did not change."""


class BucketError(SaveError, outages.Outage):
  """A bucket did not take a checkpoint; it took other files of this run."""


class Checkpointer:
  """Saves the state of a run in the background, and restores it.

  Every process of a run must make a Checkpointer and call the same methods. If
  a background save fails, the next call of `check`, or of a method that waits
  for the save, raises the error. So call `check` after every training step.

  Attributes:
    directory: directory of the steps, usually WORKDIR/checkpoints.
    keep_last: how many of the newest steps are kept.
    keep_best: how many of the best steps are kept; they may be among the
      newest.
    best_metric: the metric of `save` that ranks steps.
    is_higher_better: whether the step with the largest value is the best.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    keep_last: int = 3,
    keep_best: int = 1,
    best_metric: str | None = None,
    is_higher_better: bool = False,
    check_held: Callable[[], None] = lambda: None,
    before_commit: Callable[[], None] = lambda: None,
  ):
    """Removes incomplete steps that a killed run has left in the directory.

    Args:
      directory: directory of the steps.
      keep_last: how many of the newest steps are kept.
      keep_best: how many of the best steps are kept; they may be among the
        newest.
      best_metric: the metric of `save` that ranks steps; None ranks none.
      is_higher_better: whether the largest value is the best.
      check_held: raises an error if another run has taken the directory.
      before_commit: is called in a thread of process 0 when all arrays of a
        step are written and the step is not visible yet.

    Raises:
      ValueError: if a number is out of range.
    """
    if keep_last < 1 or keep_best < 0:
      raise ValueError(
        f'keep_last must be at least 1 and keep_best at least 0, got'
        f' {keep_last} and {keep_best}: the newest step is what a run resumes'
        ' from.'
      )
    self.directory = epath.Path(directory)
    self.keep_last = keep_last
    self.keep_best = keep_best
    self.best_metric = best_metric
    self.is_higher_better = is_higher_better
    self._check_held = check_held
    self._before_commit = before_commit
    self._own = set()  # Steps written or restored by this object.
    self._orbax = None
    self._thread = None
    self._failure = None
    if jax.process_index() == 0:
      commit.sweep(self.directory)

  def save(
    self,
    step: int,
    state: PyTree,
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> bool:
    """Starts a save; the caller may donate the arrays when this returns.

    The method waits for the previous save and copies the arrays to the host. A
    thread then writes and hashes the files, commits the step and removes old
    steps.

    Args:
      step: number of the next step to run; it is also the directory's name.
      state: tree of arrays; NamedTuples and dicts become path components.
      meta: metadata that a resumed run needs, as JSON; `step`, `metrics`,
        `best_metric`, `is_higher_better` and `versions` are added.
      metrics: metrics of this step; `best_metric` names the one that ranks it.

    Returns:
      False if this object has already saved or restored the step; then nothing
      is written.

    Raises:
      SaveError: if this save cannot start, or if the previous one failed.
      ValueError: if a newer step exists, because a restart would resume there.
    """
    self.wait()
    if step in self._own:
      return False
    # On a network file system a process may still see a step that process 0 has
    # renamed. This process alone would then fail, so process 0 looks for all.
    newest = self.latest_step()
    if newest is not None and newest > step:
      raise ValueError(
        f'Checkpoint {step} must be the newest in {self.directory}, got step'
        f' {newest}: move the newer ones away, or choose another --workdir.'
      )
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    try:
      self._start(step, state, num_bytes, {**meta, 'metrics': metrics or {}})
    except Exception as error:
      self._abandon(step, num_bytes, error)
      self.check()
    self._thread = threading.Thread(
      target=self._finish, args=(step, num_bytes), name='checkpoint'
    )
    self._thread.start()
    return True

  def restore(
    self,
    step: int | None,
    abstract_state: PyTree,
    expect: dict[str, Any] | None = None,
    optional: str = '',
  ) -> tuple[PyTree, dict[str, Any]]:
    """Reads the newest sound step, or the requested step.

    If no step is requested, damaged steps are skipped, and a warning names each
    of them with a problem. If an older step is sound, the damaged steps are
    renamed to `<step>.corrupt`.

    Args:
      step: number of the step; None for the newest sound one.
      abstract_state: tree of jax.ShapeDtypeStruct (or arrays) with the wanted
        shardings; the mesh may differ from the mesh of the save.
      expect: entries that `meta` must have, e.g. the data manifest hash.
      optional: see `restore.read`.

    Returns:
      (state, meta); the state has the structure of `abstract_state`.

    Raises:
      ValueError: if no step is sound, if the requested step is missing or
        damaged, or if `expect` or an array disagrees.
    """
    self.wait()
    step, damaged = restore.choose(self.directory, step)
    path = self.directory / str(step)
    meta = listing.read_meta(path)
    _check_meta(path, meta, expect or {})
    state = restore.read(path, abstract_state, optional)
    if jax.process_index() == 0:
      for old in damaged:
        aside = self.directory / f'{old}.corrupt'
        if aside.exists():
          aside.rmtree()
        (self.directory / str(old)).rename(aside)
    self._own.add(step)
    return state, meta

  def latest_step(self) -> int | None:
    """The newest committed step, which may be damaged; None if none exists.

    Process 0 lists the steps, and tells the other processes the newest one. So
    all processes must call this.
    """
    return listing.shared_newest_step(self.directory)

  @property
  def is_saving(self) -> bool:
    """Whether a save runs in the background."""
    return self._thread is not None and self._thread.is_alive()

  def check(self) -> None:
    """Raises if a background save failed or another run took the directory."""
    self._check_held()
    failure, self._failure = self._failure, None
    if failure is not None:
      raise failure

  def wait(self) -> None:
    """Waits until the running save is committed; raises errors like `check`."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    self.check()

  def close(self) -> None:
    """Waits for the running save and ends Orbax's threads."""
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None

  def _start(
    self, step: int, state: PyTree, num_bytes: int, meta: dict[str, Any]
  ) -> None:
    """The part of a save that the training loop waits for."""
    failpoints.reach('save.begin')
    # If the disk is full, Orbax prints tracebacks. So we check the space first.
    free = _free_bytes(self.directory)
    if free is not None and free < num_bytes:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if self._orbax is None:
      self._orbax = commit.orbax_checkpointer(
        self.directory, self._before_commit
      )
    meta = {
      **meta,
      'step': step,
      'best_metric': self.best_metric,
      'is_higher_better': self.is_higher_better,
      'versions': versions(),
    }
    self._orbax.save(
      self.directory / str(step),
      args=ocp.args.Composite(
        state=commit.StateSave(state), meta=ocp.args.JsonSave(meta)
      ),
      # An earlier attempt may have left a directory of the same step.
      force=True,
    )

  def _finish(self, step: int, num_bytes: int) -> None:
    """The part of a save that runs in the background thread."""
    try:
      self._orbax.wait_until_finished()
      self._own.add(step)
    except Exception as error:
      self._abandon(step, num_bytes, error)
      return
    failpoints.reach('commit.done')
    try:
      if jax.process_index() == 0:
        for old in listing.superseded(
          self.directory, self.keep_last, self.keep_best, self.best_metric
        ):
          commit.remove(self.directory, old)
    # Clients of object stores raise errors that are not OSError.
    except Exception as error:
      _LOG.warning('Old checkpoints could not be removed: %s.', error)

  def _abandon(self, step: int, num_bytes: int, error: Exception) -> None:
    """Keeps the error for `check`, and removes the files of the failed step."""
    reason = _reason(error)
    free = _free_bytes(self.directory)
    space = '' if free is None else f', {_size(free)} free'
    good = max(
      (s for s in listing.steps(self.directory) if s != step), default=None
    )
    kept = 'no step is before it' if good is None else f'step {good} is intact'
    is_remote = integrity.on_object_store(self.directory)
    self._failure = (BucketError if is_remote else SaveError)(
      f'Checkpoint {step} ({_size(num_bytes)}{space}) could not be written to'
      f' {self.directory}: {reason}; {kept}: free space there or'
      ' resume with a --workdir that can be written.'
    )
    self._failure.__cause__ = error
    # After a failed save an Orbax checkpointer still holds some of its data, so
    # the next save makes a new checkpointer.
    self._orbax = None
    if jax.process_index() == 0:
      commit.sweep(self.directory)


@functools.cache
def versions() -> dict[str, str]:
  """Versions of the packages that wrote a checkpoint.

  A package that runs from its source, not installed, has the version 'source'.
  """
  found = {}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'source'
  return found


def check_writable(directory: epath.PathLike, needed_bytes: int) -> None:
  """Makes a directory and checks that it has space for `needed_bytes`.

  Raises:
    ValueError: if the directory cannot be made, is not writable or has too
      little space.
  """
  directory = epath.Path(directory)
  # The name is unique, because other hosts check the same directory.
  probe = directory / f'.write-test-{uuid.uuid4().hex}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b'0' * 4096)
    probe.unlink()
  except OSError as error:
    raise ValueError(
      f'{directory} must be writable, got "{error.strerror or error}": choose'
      ' another directory or change its permissions.'
    ) from error
  free = _free_bytes(directory)
  if free is not None and free < needed_bytes:
    raise ValueError(
      f'{directory} needs {_size(needed_bytes)} for its checkpoints, got'
      f' {_size(free)} free: free some space, keep fewer checkpoints, or choose'
      ' another directory.'
    )


def _check_meta(path: epath.Path, meta: dict, expect: dict[str, Any]) -> None:
  """Raises ValueError at the first entry of `meta` that is not as expected."""
  for key, wanted in expect.items():
    if meta.get(key) != wanted:
      raise ValueError(
        f'{path} was saved with {key}={meta.get(key)!r}, got {wanted!r}: resume'
        f' with the {key} it was saved with, or choose another --workdir.'
      )


def _reason(error: BaseException) -> str:
  """The first cause of an exception, on one line."""
  while error.__cause__ or error.__context__:
    error = error.__cause__ or error.__context__
  number = outages.system_error(error)
  if number:
    return os.strerror(number)
  return outages.reason(error)


def _free_bytes(directory: epath.Path) -> int | None:
  """Free bytes of a file system; None if unknown, as for an object store."""
  if integrity.on_object_store(directory):
    return None
  try:
    return shutil.disk_usage(directory).free
  except OSError:
    return None


def _size(num_bytes: int) -> str:
  """A size for people: 512 B, 63.1 MiB."""
  size, units = float(num_bytes), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  while size >= 1024 and len(units) > 1:
    size, units = size / 1024, units[1:]
  return f'{size:.0f} B' if units[0] == 'B' else f'{size:.1f} {units[0]}'
