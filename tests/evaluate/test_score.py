"""Every score has the same fields."""

import json

import pytest

from moe.evaluate import score

BITS = score.Score('bits_per_char', 7.25, 7.0, 7.5, 1200, 'python -m a')
PSNR = score.Score('psnr', 30.0, command='b', unit='dB', is_higher_better=True)


def test_a_score_comes_back_from_json():
  for one in (BITS, PSNR):
    entries = json.loads(json.dumps(one.as_json()))
    assert score.from_json({**entries, 'task': 'more'}) == one


def test_a_table_has_a_row_per_score_and_then_the_commands():
  assert score.as_table([BITS, PSNR]).splitlines() == [
    'score            value     low    high      n  unit                better',
    'bits_per_char   7.2500  7.0000  7.5000  1,200  bits per character  lower',
    'psnr           30.0000       –       –      –  dB                  higher',
    'python -m a',
    'b',
  ]


def test_small_numbers_keep_four_digits_and_large_ones_no_decimals():
  scores = [score.Score('a', value) for value in (0.00123456, 123456.7, 0.0)]
  values = [row.split()[1] for row in score.as_table(scores).splitlines()]
  assert values == ['value', '0.001235', '123,457', '0.0000']


def test_half_an_interval_is_refused():
  with pytest.raises(ValueError, match='both ends of an interval or none'):
    score.Score('bits', 1.0, low=0.5)
