"""A separate thread reads batches ahead."""

import subprocess
import sys

import pytest

from moe.train import ahead

GO_ON = lambda: False


def test_items_come_in_their_order_and_end():
  assert list(ahead.each(iter([3, 1, 2]), GO_ON)) == [3, 1, 2]


def test_what_a_read_raises_is_raised_where_it_is_waited_for():
  with ahead.Ahead() as reads:
    reads.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
      reads.result(GO_ON)


def test_no_item_comes_after_a_signal():
  is_stopped = []
  items = ahead.each(iter([3, 1, 2]), lambda: bool(is_stopped))
  assert next(items) == 3
  is_stopped.append(True)
  assert list(items) == []


def test_a_read_that_hangs_does_not_keep_the_process_from_ending():
  program = """
import threading
from moe.train import ahead
ahead._SETTLE_SECONDS = 0.0
with ahead.Ahead() as reads:
  reads.start(threading.Event().wait)
  assert reads.result(lambda: True) is None
"""
  subprocess.run([sys.executable, '-c', program], check=True, timeout=60)
