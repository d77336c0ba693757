"""Every second of a run counts for exactly one part of its time."""

import subprocess
import sys
import time

import pytest

from moe.train import goodput


@pytest.fixture
def clock(monkeypatch):
  """A function that lets seconds pass; no other time passes."""
  now = [100.0]

  def passes(seconds):
    now[0] += seconds

  monkeypatch.setattr(goodput.time, 'monotonic', lambda: now[0])
  return passes


def test_a_process_began_when_it_was_started():
  # The process waits, so its CPU time is far less than its age.
  words = 'import time; time.sleep(1.5); from moe.train import goodput; '
  words += 'print(goodput.process_begin())'
  begin = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', words], capture_output=True, text=True, check=True
  )
  assert begin - 0.1 < float(done.stdout) < begin + 1.0


def parts(attempt):
  """Part -> seconds, for the parts that have some time."""
  return {part: seconds for part, seconds in attempt.items() if seconds}


def test_each_second_goes_to_the_innermost_part(clock):
  spent = goodput.Goodput(begin=97.0)
  clock(1)
  with spent.spent('productive'):
    clock(5)
    with spent.spent('checkpointing'):
      clock(2)
    clock(1)
    with pytest.raises(KeyError), spent.spent('evaluating'):
      clock(4)
      raise KeyError
    clock(1)
  clock(0.5)
  found = spent.summary()
  assert parts(found['attempts'][0]) == {
    'loading': 4.5,
    'productive': 7.0,
    'checkpointing': 2.0,
    'evaluating': 4.0,
  }
  assert found['seconds'] == 17.5
  assert found['goodput'] == 0.4


def test_steps_that_are_done_again_are_lost_to_the_attempts_that_made_them(
  clock, tmp_path
):
  for seconds in (3.0, 4.0):
    spent = goodput.Goodput(tmp_path)
    with spent.spent('productive'):
      clock(seconds)
    spent.close()
  spent = goodput.Goodput(tmp_path)
  spent.lose(5.0)
  spent.close()
  first, second, third = goodput.read(tmp_path)
  assert parts(first) == {'productive': 2.0, 'lost': 1.0}
  assert parts(second) == {'lost': 4.0}
  assert parts(third) == {}


def test_an_attempt_that_is_killed_is_in_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(goodput, '_SOONEST', 0.01)
  goodput.Goodput(tmp_path, begin=goodput.time.monotonic() - 7.0)
  while not goodput.read(tmp_path):  # The thread writes the file.
    pass
  assert goodput.read(tmp_path)[0]['loading'] >= 7.0


def test_a_damaged_file_counts_as_none(tmp_path):
  for content in (
    '',
    '[]',
    '{"attempts": [1]}',
    '{"attempts": [{"lost": []}]}',
  ):
    (tmp_path / goodput.NAME).write_text(content)
    assert goodput.read(tmp_path) == []
