"""Checks bits per English character against numbers worked out by hand."""

import math

import numpy as np
import pytest

from moe.evaluate import aligned


def test_all_bits_of_a_language_are_divided_by_english_characters():
  nats = np.array([30, 50]) * math.log(2)
  found = aligned.language_score('Cantonese', nats, np.array([10, 30]), '')
  assert found.value == pytest.approx(80 / 40)
  assert found.unit == aligned.BITS_PER_ENGLISH_CHAR


def test_the_difference_draws_whole_sentences():
  # Each sentence costs exactly 1 bit per English character more than in
  # English. So every bootstrap resample has the same difference.
  english = np.array([5.0, 90.0, 20.0, 300.0]) * math.log(2)
  chars = np.array([10, 20, 30, 40])
  found = aligned.difference(
    'Japanese', english + chars * math.log(2), english, chars, ''
  )
  assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_every_set_has_english():
  assert all(aligned.ENGLISH in one.fields for one in aligned.SETS)
