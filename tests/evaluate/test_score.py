"""The one form of every score."""

import json
import math

import numpy as np
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


def test_the_bits_of_documents_are_all_nats_over_all_characters():
  nats, chars = math.log(2) * np.array([8.0, 2.0]), np.array([2, 2])
  found = score.of_documents('bits', nats, chars, 'c')
  # 10 bits of 4 characters; resamples are of 8, 5 or 2 bits of 2 characters.
  assert found.value == pytest.approx(2.5)
  assert (found.low, found.high) == pytest.approx((1.0, 4.0))
  assert (found.n, found.command, found.unit) == (2, 'c', 'bits per character')


def test_one_document_has_no_interval():
  found = score.of_documents('bits', np.ones(1), np.ones(1), '')
  assert found.low is None and found.high is None


def test_half_an_interval_is_refused():
  with pytest.raises(ValueError, match='both ends of an interval or none'):
    score.Score('bits', 1.0, low=0.5)
