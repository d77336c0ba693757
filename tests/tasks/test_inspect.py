"""Tests the tables and the histogram that `launch.data inspect` prints."""

import pytest

from moe.modalities.text import train_vocabulary
from tasks import inspect


def test_bars_count_doublings():
  # The ranges 1, 2-3 and 4-7 hold one, one and four values. The longest bar has
  # 40 characters.
  assert inspect.histogram([1, 3, 4, 5, 7, 7]).splitlines() == [
    '      1-1             1 ' + '█' * 10,
    '      2-3             1 ' + '█' * 10,
    '      4-7             4 ' + '█' * 40,
  ]


def test_zero_is_a_range_of_its_own():
  assert inspect.histogram([0]).split()[:2] == ['0-0', '1']


def test_measures_count_tokens_and_bytes(tmp_path):
  rich_console = pytest.importorskip('rich.console')
  vocabulary = train_vocabulary(['白日'] * 3, 263, tmp_path / 'v', 'char')
  table = inspect.measures(['白日', '𠮷'], vocabulary)
  console = rich_console.Console(
    width=120, record=True, file=open('/dev/null', 'w')
  )
  console.print(table)
  text = console.export_text()
  # The texts have 3 characters and 2 + 4 tokens, of which 4 are bytes.
  assert '0.500' in text and '66.6667%' in text
