"""A run that hangs is ended, with its cause and the stacks of all threads."""

import threading
import time

import pytest

from moe.train import watchdog


class Ended:
  """Replaces `os._exit` and records the exit codes."""

  def __init__(self):
    self.codes = []
    self._is_over = threading.Event()

  def __call__(self, code):
    self.codes.append(code)
    self._is_over.set()

  def wait(self):
    """Waits for the end, as a hanging thread would."""
    assert self._is_over.wait(30)


@pytest.mark.parametrize(
  ('doing', 'fragment'),
  [
    ('restoring', 'the state has not been made or restored'),
    ('compiling', 'the step has not been compiled'),
    ('the data', 'no batch has come'),
    ('the devices', 'a stopped process of this run'),
    ('an evaluation', 'held-out data'),
    ('a checkpoint', 'network of the checkpoints'),
  ],
)
def test_a_hang_ends_the_process_and_names_its_cause(
  tmp_path, capfd, doing, fragment
):
  ended, begin = Ended(), time.monotonic()
  with watchdog.Watchdog(0.2, tmp_path, ended) as dog:
    dog.sees(doing)
    ended.wait()
  assert time.monotonic() - begin >= 0.2
  assert ended.codes == [watchdog.EXIT_HUNG]
  text = (tmp_path / watchdog.STACKS).read_text()
  assert fragment in text
  assert fragment in capfd.readouterr().err
  # The stack of this thread names the function in which it waits.
  assert 'in wait' in text and 'test_watchdog.py' in text


def test_signs_of_life_keep_a_run_going(tmp_path):
  ended = Ended()
  with watchdog.Watchdog(0.5, tmp_path, ended) as dog:
    step = dog.watched('the devices', time.sleep)
    for _ in range(12):
      step(0.1)
  assert ended.codes == []


def test_a_process_that_was_suspended_gets_its_time_anew(tmp_path, monkeypatch):
  # Between two looks at the clock, an hour passes.
  times = iter([0.0, 0.0, 0.1, 3600.0, 3600.1, 3600.2])
  looks = threading.Event()

  def now():
    try:
      return next(times)
    except StopIteration:
      looks.set()
      return 3600.3

  monkeypatch.setattr(watchdog.time, 'monotonic', now)
  ended = Ended()
  with watchdog.Watchdog(1.0, tmp_path, ended):
    assert looks.wait(30)
  assert ended.codes == []


def test_zero_seconds_start_no_thread(tmp_path):
  before = threading.active_count()
  with watchdog.Watchdog(0, tmp_path):
    assert threading.active_count() == before
