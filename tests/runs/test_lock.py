"""The lock of a work directory admits one run at a time."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from moe.runs import lock

OTHER = {
  'owner': 'b',
  'host': 'far',
  'process': 7,
  'machine': 'another boot',
  'beat': 3,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.02)
  monkeypatch.setattr(lock, 'STALE_SECONDS', 0.3)
  monkeypatch.setattr(lock, '_SETTLE_SECONDS', (0.3, 0.3))


@pytest.fixture
def path(tmp_path):
  return tmp_path / lock.NAME


def write(path, **entries):
  path.write_text(json.dumps({**OTHER, **entries}))


def here(process):
  """Entries of a lock file whose owner is a process of this machine."""
  return {
    'host': socket.gethostname(),
    'process': process,
    'machine': lock._machine(),
    'process_start': lock._process_start(process),
  }


def owner(path):
  return json.loads(path.read_text())['owner']


def test_the_second_run_is_refused_at_once_by_host_and_process(tmp_path, path):
  with lock.held(str(tmp_path)):
    first = path.read_text()
    wanted = f'process {os.getpid()} on host {socket.gethostname()}, since 20'
    with pytest.raises(ValueError, match=wanted), lock.held(str(tmp_path)):
      pass
    assert json.loads(path.read_text())['owner'] == json.loads(first)['owner']
  assert not path.exists()


@pytest.mark.parametrize('start', ['as it was', 'another'])
def test_the_lock_of_a_dead_process_of_this_host_is_taken_at_once(
  tmp_path, path, start, monkeypatch
):
  monkeypatch.setattr(lock, 'STALE_SECONDS', 3600.0)
  # The owner has ended. It is a zombie, or its process id now belongs to
  # another process.
  process = subprocess.Popen([sys.executable, '-c', ''])
  write(path, **here(process.pid))
  if start == 'another':
    write(path, **{**here(os.getpid()), 'process_start': '1'})
  else:
    while lock._process_start(process.pid) != 'ended':
      time.sleep(0.01)
  with lock.held(str(tmp_path)):
    assert owner(path) != 'b'
  process.wait()


def test_the_silent_lock_of_another_host_is_taken_after_a_while(tmp_path, path):
  write(path)
  begin = time.monotonic()
  with lock.held(str(tmp_path)):
    assert owner(path) != 'b'
  assert time.monotonic() - begin > 0.3


def test_a_lock_of_another_host_that_changes_is_respected(tmp_path, path):
  write(path)
  timer = threading.Timer(0.1, lambda: write(path, beat=4))
  timer.start()
  with (
    pytest.raises(ValueError, match='process 7 on host far'),
    lock.held(str(tmp_path)),
  ):
    pass
  timer.join()
  assert owner(path) == 'b'


def test_an_incomplete_file_is_stale_unless_it_changes(tmp_path, path):
  path.write_text('{"own')
  with lock.held(str(tmp_path)):
    assert owner(path)


def test_a_run_stops_when_another_run_has_taken_its_lock(tmp_path, path):
  with lock.held(str(tmp_path)) as check:
    while json.loads(path.read_text())['beat'] < 2:
      time.sleep(0.01)
    check()
    path.unlink()  # A user may delete the file.
    while not path.exists():
      time.sleep(0.01)
    check()
    taken = path.with_suffix('.new')
    write(taken)
    # The heartbeat may overwrite the file of the other run before reading it,
    # so the test writes this file again and again.
    with pytest.raises(ValueError, match='taken by process 7 on host far'):
      for _ in range(200):
        write(taken)
        taken.replace(path)
        time.sleep(0.02)
        check()
  assert owner(path) == 'b'


def test_the_heart_beats_on_after_an_error_of_an_object_store(
  tmp_path, path, monkeypatch
):
  write_file, errors = lock._Lock._write, [RuntimeError('503')]
  with lock.held(str(tmp_path)):

    def fail_once(self):
      if errors:
        raise errors.pop()
      write_file(self)

    monkeypatch.setattr(lock._Lock, '_write', fail_once)
    while errors:
      time.sleep(0.01)
    beat, end = json.loads(path.read_text())['beat'], time.monotonic() + 10
    while json.loads(path.read_text())['beat'] == beat:
      assert time.monotonic() < end
      time.sleep(0.01)


@pytest.mark.parametrize('is_stale', [False, True])
def test_one_of_several_runs_that_start_together_gets_the_lock(
  tmp_path, path, is_stale
):
  if is_stale:
    write(path, **{**here(os.getpid()), 'process_start': '1'})
  results, barrier = [], threading.Barrier(4)

  def run():
    barrier.wait()
    try:
      with lock.held(str(tmp_path)):
        results.append('held')
        time.sleep(1.0)
    except ValueError:
      results.append('refused')

  threads = [threading.Thread(target=run) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(results) == ['held', 'refused', 'refused', 'refused']


def test_on_an_object_store_the_last_writer_gets_the_lock(tmp_path, path):
  mine = lock._Lock(str(tmp_path))
  mine._is_remote = True
  timer = threading.Timer(0.1, lambda: write(path))
  timer.start()
  with pytest.raises(ValueError, match='process 7 on host far'):
    mine.acquire()
  timer.join()
  assert owner(path) == 'b'
