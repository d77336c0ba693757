"""One process at a time makes stores, also on a file system without locks."""

import errno
import fcntl
import logging
import pathlib
import tempfile
import threading
import time

import pytest

from tasks import store_lock


@pytest.fixture(params=[None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def directory(request, tmp_path, monkeypatch):
  """A directory, on a file system whose locks fail with this error."""
  (tmp_path / 'local').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'local'))
  monkeypatch.setattr(store_lock, '_RETRY_SECONDS', 0.01)
  real = fcntl.flock

  def flock(file, operation):
    if request.param and not file.name.startswith(tempfile.tempdir):
      raise OSError(request.param, 'no locks')
    real(file, operation)

  monkeypatch.setattr(fcntl, 'flock', flock)
  return str(tmp_path / 'cache/poems-400')


without_locks = pytest.mark.parametrize(
  'directory', [errno.ENOLCK], indirect=True
)


def owner_file(directory):
  return directory.replace('poems-400', '.poems-400.lock.owner')


def test_one_process_at_a_time_holds_the_lock(directory):
  inside, most = [], []

  def work():
    with store_lock.held(directory):
      inside.append(1)
      time.sleep(0.02)
      most.append(len(inside))
      inside.pop()

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
  assert most == [1] * 4


@without_locks
def test_the_file_of_a_killed_process_of_this_host_is_replaced(directory):
  with store_lock.held(directory):
    with open(owner_file(directory), encoding='utf-8') as f:
      own = f.read()
  with open(owner_file(directory), 'x', encoding='utf-8') as f:
    f.write(own)
  with store_lock.held(directory):
    pass
  assert not pathlib.Path(owner_file(directory)).exists()


@without_locks
def test_the_file_of_another_host_is_waited_for_and_named(
  directory, monkeypatch, caplog
):
  monkeypatch.setattr(store_lock, '_TELL_SECONDS', 0.0)
  caplog.set_level(logging.INFO)
  with store_lock.held(directory):
    pass  # Makes the folder.
  path = pathlib.Path(owner_file(directory))
  path.write_text('user 1 on host other')
  events = []

  def work():
    with store_lock.held(directory):
      events.append('held')

  thread = threading.Thread(target=work)
  thread.start()
  time.sleep(0.2)
  assert events == []
  path.unlink()
  thread.join(20)
  assert events == ['held'] and not path.exists()
  assert 'waiting for user 1 on host other' in caplog.text
  assert f'delete {path}' in caplog.text


@pytest.mark.parametrize('directory', [errno.EIO], indirect=True)
def test_another_error_of_a_lock_is_raised(directory):
  with pytest.raises(OSError, match='no locks'):
    with store_lock.held(directory):
      pass
