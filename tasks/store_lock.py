"""A lock, so that only one process at a time makes the stores of a directory.

The operating system locks a file beside the directory. Some network file
systems have no locks. There we use two files. The first lies on this machine
and is locked, so that one process of this user on this machine goes on. The
second lies beside the directory, and names the machine while its process works:
even a file system without locks creates a file only once. A process that was
killed leaves the second file. The next process of the same machine replaces it,
and other machines wait and say which file that is.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Iterator

_logger = logging.getLogger(__name__)

# Errors of a file system that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_RETRY_SECONDS = 0.5
_TELL_SECONDS = 30.0


@contextlib.contextmanager
def held(directory: str) -> Iterator[None]:
  """Waits until no other process makes the stores of a directory.

  Args:
    directory: directory of a vocabulary and its stores, which need not exist.

  Raises:
    ValueError: if the folder of the directory is not writable.
  """
  cache_dir, name = os.path.split(directory)
  path = os.path.join(cache_dir, f'.{name}.lock')
  try:
    os.makedirs(cache_dir, exist_ok=True)
    lock = open(path, 'w')
  except OSError as error:
    raise ValueError(
      f'The cache directory {cache_dir} must be writable, got {error.strerror}:'
      ' choose another one with --cache_dir or $WUDAO_CACHE.'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      with _held_without_locks(pathlib.Path(f'{path}.owner')):
        yield
    else:
      yield


@contextlib.contextmanager
def _held_without_locks(path: pathlib.Path) -> Iterator[None]:
  key = hashlib.sha256(os.fspath(path.absolute()).encode()).hexdigest()[:16]
  here = f'{tempfile.gettempdir()}/wudao-{os.getuid()}-{key}.lock'
  with open(here, 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    _create(path)
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def _create(path: pathlib.Path) -> None:
  """Creates the file that names this machine; waits for other machines."""
  own = f'user {os.getuid()} on host {socket.gethostname()}'
  tell_at = time.monotonic() + _TELL_SECONDS
  while True:
    try:
      with open(path, 'x', encoding='utf-8') as f:
        f.write(own)
      return
    except FileExistsError:
      owner = _read(path)
    # We hold the lock of this machine, so its process is dead.
    if owner == own:
      path.unlink(missing_ok=True)
      continue
    if time.monotonic() >= tell_at:
      tell_at += _TELL_SECONDS
      _logger.info(
        f'waiting for {owner or "another host"}, which makes the same stores;'
        f' if it no longer does, delete {path}'
      )
    time.sleep(_RETRY_SECONDS)


def _read(path: pathlib.Path) -> str:
  """The owner that the file names; '' if the file is not there, or not yet."""
  try:
    return path.read_text(encoding='utf-8')
  except FileNotFoundError:
    return ''
