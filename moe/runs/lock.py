"""One run at a time in a work directory, by a small file with a heartbeat.

The file names its run, and a number in it rises every few seconds. It needs no
lock of the operating system, so it also holds between hosts that mount the
directory without such locks, and on object stores. Clocks of two hosts are
never compared: who finds a file of another host watches whether it changes.

A file system tells who was first to make the file. An object store does not,
and no file system tells who was first to replace one, so that is written, and
read again after a while. Should two runs believe that they were first all the
same, the heartbeat of one of them finds the name of the other, and it stops.
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

from moe import atomic_files

_logger = logging.getLogger(__name__)

NAME = 'running.json'
BEAT_SECONDS = 10.0
# A file of another host that has not changed for so long is of a dead process.
STALE_SECONDS = 60.0
# Between writing and reading again: on a disk, on an object store.
_SETTLE_SECONDS = 0.2, 2.0


@contextlib.contextmanager
def held(workdir: str) -> Iterator[Callable[[], None]]:
  """Holds a work directory while the block runs.

  A file of a dead process of this host is replaced at once, one of another host
  when it has not changed for `STALE_SECONDS`. Of several processes, the first
  one holds the directory for all.

  Args:
    workdir: of the run, a directory that is there.

  Yields:
    A function that raises ValueError if another run has taken the directory.

  Raises:
    ValueError: if another run holds it; it names host and process.
  """
  lock, error = None, None
  if jax.process_index() == 0:
    lock = _Lock(workdir)
    try:
      lock.acquire()
    except ValueError as refused:
      error = refused
  if jax.process_count() > 1:
    is_refused = np.array(error is not None)
    if multihost_utils.broadcast_one_to_all(is_refused) and error is None:
      error = ValueError(
        f'Another run holds {workdir}, as process 0 has found.'
      )
  if error is not None:
    raise error
  try:
    yield lock.check if lock else lambda: None
  finally:
    if lock:
      lock.release()


class _Lock:
  """The file of one run; a thread keeps its number rising."""

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
      'since': time.strftime('%Y-%m-%d %H:%M:%S'),  # for people alone
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
    """Makes the file, or replaces a stale one; ValueError if a run is alive."""
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
        if watched is not None:  # It has changed: its run is alive.
          raise self._refusal(found)
        watched, since = text, time.monotonic()
        _logger.info(
          f'{self._workdir} is held by {_named(found)}: waiting'
          f' {STALE_SECONDS:.0f} s to see whether it is alive'
        )
      if is_here or time.monotonic() - since > STALE_SECONDS:
        self._replace(found)
        break
      time.sleep(min(1.0, STALE_SECONDS / 10))
    self._beaten_at = time.monotonic()
    self._thread.start()

  def check(self) -> None:
    """Raises ValueError if another run has taken the directory."""
    # After a pause of the whole process, the thread may not have looked yet.
    if time.monotonic() - self._beaten_at > STALE_SECONDS / 2:
      self._beat()
    if self._taken_by is not None:
      raise ValueError(
        f'{self._workdir} has been taken by {_named(self._taken_by)}: this run'
        ' stops here and writes no more; let one of the two run, or give them'
        ' work directories of their own.'
      )

  def release(self) -> None:
    """Removes the file, if it is still ours."""
    self._is_released.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._is_ours(self._read()):
        self._path.unlink()

  def _create(self) -> bool:
    """Makes the file; False if there is one."""
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
    """Puts our name in the place of a dead run's."""
    self._write()
    self._settle()
    _logger.info(
      f'warning: {_named(stale)} held {self._workdir} and no longer runs: this'
      ' run takes its place.'
    )

  def _settle(self) -> None:
    """Waits, and raises ValueError if another run has written after us."""
    time.sleep(_SETTLE_SECONDS[self._is_remote])
    text = self._read()
    if not self._is_ours(text):
      raise self._refusal(_decode(text or ''))

  def _refusal(self, found: dict[str, Any]) -> ValueError:
    since = f', since {found["since"]}' if 'since' in found else ''
    return ValueError(
      f'--workdir={self._workdir} must be of one run at a time, got that of'
      f' {_named(found)}{since}: wait until it has ended, stop it, or choose'
      ' another --workdir.'
    )

  def _keep_beating(self) -> None:
    while not self._is_released.wait(BEAT_SECONDS):
      self._beat()
      if self._taken_by is not None:
        return

  def _beat(self) -> None:
    """Raises the number, unless the file has another owner."""
    with self._mutex:
      try:
        text = self._read()
        # A file that somebody has deleted is written again.
        if text is not None and not self._is_ours(text):
          self._taken_by = _decode(text)
          return
        self._record['beat'] += 1
        self._write()
        self._beaten_at = time.monotonic()
      except OSError as error:  # The next beat tries again.
        _logger.info(f'warning: {self._path} could not be written: {error}')

  def _read(self) -> str | None:
    """What the file holds; None if there is none."""
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
  """The entries of a file; none if it is not whole."""
  try:
    found = json.loads(text)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _named(found: dict[str, Any]) -> str:
  """A run, for people."""
  process, host = found.get('process', 'unknown'), found.get('host', 'unknown')
  return f'process {process} on host {host}'


def _machine() -> str:
  """Tells apart machines, boots and containers: process numbers are of one."""
  try:
    with open('/proc/sys/kernel/random/boot_id') as f:
      return f'{f.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux
    return socket.gethostname()


def _is_alive(found: dict[str, Any]) -> bool:
  """Whether the process of a run of this machine is still there."""
  process = found.get('process')
  if not isinstance(process, int):
    return True
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # It is another user's.
  return _process_start(process) == found.get('process_start')


def _process_start(process: int) -> str | None:
  """When a process began, in ticks since the boot; None where that is unknown.

  A process that has ended and was not waited for has the answer 'ended'.
  """
  try:
    with open(f'/proc/{process}/stat', encoding='utf-8', errors='replace') as f:
      # The second field is a name in brackets, which may hold anything.
      fields = f.read().rpartition(')')[2].split()
  except OSError:
    return None
  return 'ended' if fields[0] in 'ZX' else fields[19]
