"""A lock file with a heartbeat: only one run at a time uses a work directory.

The file names its owner, and the owner raises a counter in the file every few
seconds (the heartbeat). The file is not locked by the operating system. So it
also works between hosts whose shared file system has no locks, and on object
stores. The clocks of two hosts are never compared. If a run finds the file of
another host, the run waits and looks whether the file changes.

If two runs create the file at the same time, a file system lets only one of
them succeed. An object store lets both succeed. If two runs replace the file at
the same time, both succeed everywhere. In these cases a run writes the file,
waits, and reads the file again. If two runs still believe that they own the
directory, one of them stops: at its next heartbeat it finds the name of the
other run in the file.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from moe import atomic_files, json_text

_logger = logging.getLogger(__name__)

NAME = 'running.json'
BEAT_SECONDS = 10.0
# If the owner of the lock is on another host, it counts as dead when the file
# has not changed for this time.
STALE_SECONDS = 60.0
# Seconds between writing the file and reading it again: (on a file system, on
# an object store).
_SETTLE_SECONDS = 0.2, 2.0


class InUse(ValueError):
  """Raised if another run uses the work directory; the message names it."""


@contextlib.contextmanager
def held(workdir: str) -> Iterator[Callable[[], None]]:
  """Locks a work directory while the block runs.

  The lock file of a dead process on this host is replaced at once. The lock
  file of another host is replaced if it does not change for `STALE_SECONDS`. If
  a run has several processes, process 0 holds the lock for all of them.

  Args:
    workdir: directory of the run, which must exist.

  Yields:
    A function that raises ValueError if another run has taken the directory.
    Only process 0 checks this.

  Raises:
    InUse: if another run holds the lock; the message of process 0 names its
      host and process.
  """
  lock, error = None, None
  if jax.process_index() == 0:
    lock = _Lock(workdir)
    try:
      lock.acquire()
    except InUse as refused:
      error = refused
  if jax.process_count() > 1:
    is_refused = np.array(error is not None)
    if multihost_utils.broadcast_one_to_all(is_refused) and error is None:
      error = InUse(
        f'--workdir={workdir} must be free, but another run uses it: see the'
        ' message of process 0.'
      )
  if error is not None:
    raise error
  try:
    yield lock.check if lock else lambda: None
  finally:
    if lock:
      lock.release()


class _Lock:
  """The lock file of one run, with a thread for its heartbeat."""

  def __init__(self, workdir: str):
    self._workdir = workdir
    self._is_remote = '://' in workdir
    self._path = epath.Path(workdir) / NAME
    self._record = {
      'owner': uuid.uuid4().hex,
      'host': socket.gethostname(),
      'process': os.getpid(),
      'machine': _machine(),
      'process_start': _process_start(os.getpid()),
      'since': time.strftime('%Y-%m-%d %H:%M:%S'),  # Only people read this.
      'beat': 0,
    }
    self._beaten_at = 0.0
    self._taken_by = None
    self._mutex = threading.Lock()
    self._is_released = threading.Event()
    self._thread = threading.Thread(
      target=self._keep_beating, name='lock', daemon=True
    )

  def acquire(self) -> None:
    """Creates the file or replaces a stale one.

    Raises:
      InUse: if the owner of the file is alive, or another run takes the file.
    """
    watched, since = None, 0.0
    while not self._create():
      text = self._read()
      if text is None:
        continue
      found = _decode(text)
      is_here = found.get('machine') == self._record['machine']
      if is_here and _is_alive(found):
        raise self._refusal(found)
      if not is_here and text != watched:
        if watched is not None:  # The file has changed: its owner is alive.
          raise self._refusal(found)
        watched, since = text, time.monotonic()
        _logger.info(
          f'{self._workdir} is locked by {_named(found)}: waiting'
          f' {STALE_SECONDS:.0f} s to see whether that process is alive'
        )
      if is_here or time.monotonic() - since > STALE_SECONDS:
        self._replace(found)
        break
      time.sleep(min(1.0, STALE_SECONDS / 10))
    self._beaten_at = time.monotonic()
    self._thread.start()

  def check(self) -> None:
    """Raises ValueError if another run has taken the directory."""
    # If the whole process was suspended, the heartbeat thread may not have read
    # the file since then.
    if time.monotonic() - self._beaten_at > STALE_SECONDS / 2:
      self._beat()
    if self._taken_by is not None:
      raise ValueError(
        f'{self._workdir} has been taken by {_named(self._taken_by)}, so this'
        ' run stops and writes no more: run only one of the two, or give each'
        ' its own --workdir.'
      )

  def release(self) -> None:
    """Removes the file if this run still owns it."""
    self._is_released.set()
    self._thread.join()
    # Clients of object stores raise errors that are not OSError.
    with contextlib.suppress(Exception):
      if self._is_ours(self._read()):
        self._path.unlink()

  def _create(self) -> bool:
    """Creates the file; returns False if it exists."""
    if self._is_remote:
      if self._read() is not None:
        return False
      self._write()
      self._settle()
      return True
    try:
      with open(self._path, 'x', encoding='utf-8') as f:
        f.write(json.dumps(self._record))
    except FileExistsError:
      return False
    return True

  def _replace(self, stale: dict[str, Any]) -> None:
    """Replaces the lock file of a dead owner."""
    self._write()
    self._settle()
    _logger.info(
      f'warning: {_named(stale)} locked {self._workdir} and no longer runs:'
      ' this run takes over.'
    )

  def _settle(self) -> None:
    """Waits; raises InUse if another run writes the file meanwhile."""
    time.sleep(_SETTLE_SECONDS[self._is_remote])
    text = self._read()
    if not self._is_ours(text):
      raise self._refusal(_decode(text or ''))

  def _refusal(self, found: dict[str, Any]) -> InUse:
    since = f', since {found["since"]}' if 'since' in found else ''
    return InUse(
      f'--workdir={self._workdir} must have one run at a time, but is used by'
      f' {_named(found)}{since}: wait until that run ends, stop it, or choose'
      ' another --workdir.'
    )

  def _keep_beating(self) -> None:
    while not self._is_released.wait(BEAT_SECONDS):
      self._beat()
      if self._taken_by is not None:
        return

  def _beat(self) -> None:
    """Increases the counter in the file, unless the file has another owner."""
    with self._mutex:
      try:
        text = self._read()
        # If somebody has deleted the file, we write it again.
        if text is not None and not self._is_ours(text):
          self._taken_by = _decode(text)
          return
        self._record['beat'] += 1
        self._write()
        self._beaten_at = time.monotonic()
      except Exception as error:  # As in `release`. The next beat tries again.
        _logger.info(f'warning: {self._path} could not be written: {error}')

  def _read(self) -> str | None:
    """The text of the file; None if there is no file."""
    try:
      return self._path.read_text()
    except FileNotFoundError:
      return None

  def _write(self) -> None:
    text = json.dumps(self._record)
    if self._is_remote:
      self._path.write_text(text)
    else:
      atomic_files.write_file(self._path, text)

  def _is_ours(self, text: str | None) -> bool:
    return _decode(text or '').get('owner') == self._record['owner']


def _decode(text: str) -> dict[str, Any]:
  """The entries of a lock file; no entries if the file is incomplete."""
  try:
    found = json_text.parse(text)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _named(found: dict[str, Any]) -> str:
  """Host and process of a run, for a message."""
  process, host = found.get('process', 'unknown'), found.get('host', 'unknown')
  return f'process {process} on host {host}'


def _machine() -> str:
  """A name for this machine, its last boot, and this container.

  Process numbers can be compared only if this name is the same.
  """
  try:
    with open('/proc/sys/kernel/random/boot_id') as f:
      return f'{f.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux
    return socket.gethostname()


def _is_alive(found: dict[str, Any]) -> bool:
  """Whether the owner of a lock file, a process of this machine, still runs."""
  process = found.get('process')
  if not isinstance(process, int):
    return True
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # The process exists and belongs to another user.
  return _process_start(process) == found.get('process_start')


def _process_start(process: int) -> str | None:
  """The start time of a process in ticks since boot; None if unknown.

  The result is 'ended' for a zombie: a process that has ended, but whose parent
  has not waited for it yet.
  """
  try:
    with open(f'/proc/{process}/stat', encoding='utf-8', errors='replace') as f:
      # The second field is a name in parentheses, with any characters in it.
      fields = f.read().rpartition(')')[2].split()
  except OSError:
    return None
  return 'ended' if fields[0] in 'ZX' else fields[19]
