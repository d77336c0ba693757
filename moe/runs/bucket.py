"""A work directory in a bucket, with a mirror on this machine.

Logs are appended, and an object store takes whole files only. So the run writes
its files into a directory of this machine, the mirror, and copies them to the
bucket before each checkpoint becomes visible, in a thread, and at the end.
Checkpoints go to the bucket alone. A run that resumes, on any machine, first
fetches the files from there.

TensorBoard's files stay in the mirror.
"""

import logging
import os
import re
import shutil
import uuid

import jax
from etils import epath
from jax.experimental import multihost_utils

from moe import atomic_files, outages
from moe.checkpoint import integrity, listing
from moe.data import cache_dir
from moe.parallel import processes
from moe.runs import lock

_logger = logging.getLogger(__name__)

_SCHEME = 'gs://'


def opened(place: str, is_written: bool = False) -> str:
  """Returns the local directory of a run.

  For a URL this is the mirror. The files of the bucket are copied into it,
  except the lock and the checkpoints. A command that only reads has a directory
  of its own, so it does not replace a log to which a run of this machine
  appends. A directory is returned as it is.

  Args:
    place: a directory, or a URL that begins with gs://.
    is_written: whether a run will write there.

  Raises:
    ValueError: if the URL does not begin with gs://, if the bucket cannot be
      read, or if `is_written` and it cannot be written. It is an
      `outages.Outage` if the user cannot do anything about it.
    lock.InUse: if another run writes there.
  """
  if not integrity.on_object_store(place):
    return place
  url = place.rstrip('/')
  if not url.startswith(_SCHEME):
    raise ValueError(
      f'{place} must be a directory or a URL that begins with {_SCHEME}: mount'
      ' any other store.'
    )
  workdir = cache_dir.mirror(url, 'runs' if is_written else 'read')
  try:
    if is_written:
      _prepare(url, workdir)
    else:
      remote = epath.Path(url)
      _empty_if_old(remote, workdir)
      _wait_for_others('bucket: the old files are gone')
      os.makedirs(workdir, exist_ok=True)
      if remote.exists():  # A dry run may come before the first run.
        _fetch(remote, workdir)
  except lock.InUse:
    raise
  # The clients of object stores raise many kinds of errors.
  except Exception as error:
    reason = outages.reason(error)
    if _is_outage(error):
      raise outages.Outage(f'{place} cannot be used now: {reason}') from error
    raise ValueError(
      f'{place} must be in a bucket that can be used, got {reason}: make the'
      ' bucket, or log in.'
    ) from error
  if listing.bucket_of(workdir) != url:  # The bucket may lack this file.
    atomic_files.write_file(os.path.join(workdir, listing.BUCKET), url)
  _logger.info(f'the files of {url} are also in {workdir}')
  return workdir


def _is_outage(error: Exception) -> bool:
  """Whether a bucket cannot be used for no fault of the user."""
  code = str(getattr(error, 'code', ''))  # The status of an answer by HTTP.
  if code.isdecimal():
    return code in ('408', '429') or code.startswith('5')
  if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
    return False
  if re.search('Forbidden|[Cc]redentials', f'{type(error).__name__} {error}'):
    return False
  return not isinstance(error, ValueError | ImportError)


def _prepare(url: str, workdir: str) -> None:
  """Fetches the files of a run that will go on, or makes an empty mirror."""
  remote = epath.Path(url)
  marker = remote / listing.BUCKET
  # A run of this machine may be writing into the mirror. Then the lock stops us
  # before we replace its files.
  with lock.held(url):
    if jax.process_index() == 0 and not marker.exists():
      marker.write_text(f'{url}\n{uuid.uuid4().hex}\n')
    _wait_for_others('bucket: the run has a name')
    _empty_if_old(remote, workdir)
    # Two processes may share the mirror. So none fills it before all are here.
    _wait_for_others('bucket: the mirror is empty')
    os.makedirs(workdir, exist_ok=True)
    _fetch(remote, workdir)


def _wait_for_others(where: str) -> None:
  if processes.are_joined():
    multihost_utils.sync_global_processes(where)


def _empty_if_old(remote: epath.Path, workdir: str) -> None:
  """Removes the mirror if the bucket names another run than the mirror."""
  marker, own = remote / listing.BUCKET, epath.Path(workdir) / listing.BUCKET
  if marker.exists():
    if not own.exists() or own.read_text() != marker.read_text():
      shutil.rmtree(workdir, ignore_errors=True)


def _fetch(remote: epath.Path, workdir: str) -> None:
  """Copies files from a bucket to `workdir`, without lock and checkpoints."""
  for path in remote.iterdir():
    if path.name not in (lock.NAME, 'checkpoints') and not path.is_dir():
      atomic_files.write_file(
        os.path.join(workdir, path.name), path.read_bytes()
      )


class Mirror:
  """The files of a run that are copied to its bucket, if it has one.

  Attributes:
    place: the URL of the work directory; the directory itself if there is no
      bucket.
  """

  def __init__(self, workdir: str):
    self._workdir = workdir
    self._url = listing.bucket_of(workdir)
    self._sent = {}  # Name -> (size, time) of the file that was copied.
    self.place = self._url or workdir

  def send(self) -> None:
    """Copies the files that have changed; does nothing without a bucket.

    Raises:
      outages.Outage: if the bucket takes no file at present.
    """
    if self._url is None or jax.process_index() != 0:
      return
    try:
      self._send()
    # The clients of object stores raise many kinds of errors.
    except Exception as error:
      raise outages.Outage(
        f'{self._url} could not be written: {outages.reason(error)}: run the'
        ' same command again.'
      ) from error

  def _send(self) -> None:
    for entry in os.scandir(self._workdir):
      if not entry.is_file() or entry.name.endswith('.tmp'):
        continue
      status = entry.stat()
      facts = status.st_size, status.st_mtime_ns
      if self._sent.get(entry.name) == facts:
        continue
      with open(entry.path, 'rb') as f:
        (epath.Path(self._url) / entry.name).write_bytes(f.read())
      self._sent[entry.name] = facts
