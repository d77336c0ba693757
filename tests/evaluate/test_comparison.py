"""The paired bootstrap on hand-worked cases."""

import math

import numpy as np
import pytest

from moe.evaluate import comparison
from moe.evaluate.comparison import compare
from moe.evaluate.score import Score

LN2 = math.log(2)


def test_the_difference_is_a_ratio_of_sums():
  # The differences are 3 bits for 1 character and 0 bits for 2 characters, so
  # 3 / 3 = 1 bit per character. The mean of the two ratios would be 1.5.
  result = compare(np.array([5, 4]) * LN2, np.array([2, 4]) * LN2, [1, 2])
  assert result.difference == pytest.approx(1)


def test_every_resample_is_a_ratio_of_sums():
  # A quarter of the resamples take the first document twice (3 bits / 1
  # character), a quarter the second one twice (0), and half take both (3 / 3 =
  # 1). So the middle 40 percent of the results are all 1.
  result = compare(np.array([3, 0]) * LN2, np.zeros(2), [1, 2], confidence=0.4)
  assert (result.low, result.high) == pytest.approx((1, 1))
  result = compare(np.array([3, 0]) * LN2, np.zeros(2), [1, 2], confidence=0.95)
  assert (result.low, result.high) == pytest.approx((0, 3))


def test_equal_gains_leave_no_doubt():
  # The first model needs 1 bit less for each document of 2 characters. So the
  # difference is -0.5 bits per character in every resample.
  chars = np.full(10, 2)
  result = compare(np.arange(10) * LN2, (np.arange(10) + 1) * LN2, chars)
  assert (result.low, result.difference, result.high) == pytest.approx(
    [-0.5] * 3
  )
  assert result.share_better == 1


def test_pairing_removes_what_documents_have_in_common():
  rng = np.random.default_rng(0)
  hard = rng.normal(100, 50, 400)
  result = compare(
    hard + rng.normal(-1, 0.1, 400), hard + rng.normal(0, 0.1, 400), [1] * 400
  )
  # The standard deviation of a difference is sqrt(2) / 10 nats. The mean of 400
  # differences has the standard deviation sqrt(2) / 10 / 20 = 0.00707 nats, or
  # 0.0102 bits. So the interval is about 4 x 0.0102 wide, although the nats of
  # the documents have a standard deviation of 50.
  assert result.low < -1 / LN2 < result.high
  assert result.high - result.low == pytest.approx(0.04, abs=0.008)


def test_the_interval_is_the_normal_one_for_many_documents():
  # Half of the differences are 0 bits, half are 2 bits, for 1 character each.
  # The mean and the standard deviation are 1. So the 95% interval of the mean
  # of 400 documents is 1 +- 1.96 / sqrt(400) = 1 +- 0.098.
  bits = np.tile([0, 2], 200)
  result = compare(bits * LN2, np.zeros(400), np.ones(400))
  assert result.low == pytest.approx(1 - 0.098, abs=0.01)
  assert result.high == pytest.approx(1 + 0.098, abs=0.01)
  assert result.num_resamples == 10_000
  # The first model is better in no document. Half of the documents are ties,
  # and a tie counts half.
  assert result.share_better == 0.25


def test_the_interval_is_the_same_every_time():
  rng = np.random.default_rng(0)
  nats, others, chars = rng.random((3, 50))
  assert compare(nats, others, chars) == compare(nats, others, chars)


def test_a_document_without_characters_does_not_break_the_ratio():
  result = compare([1.0, 2.0], [1.0, 1.0], [0, 4])
  assert result.difference == pytest.approx(1 / LN2 / 4)
  assert np.isfinite([result.low, result.high]).all()


def test_one_document_gives_a_difference_and_no_interval():
  result = compare([3 * LN2], [LN2], [4])
  assert result.difference == pytest.approx(0.5)
  assert (result.low, result.high, result.num_resamples) == (None, None, 0)


def test_scores_of_different_documents_are_refused():
  with pytest.raises(ValueError, match='got 2 and 1 scores of 2 documents'):
    compare([1.0, 2.0], [1.0], [3, 4])
  with pytest.raises(ValueError, match='at least one document must hold text'):
    compare([1.0], [2.0], [0])


def test_the_bits_of_documents_are_all_nats_over_all_characters():
  nats, chars = math.log(2) * np.array([8.0, 2.0]), np.array([2, 2])
  found = comparison.of_documents('bits', nats, chars, 'c')
  # The documents have 8 and 2 bits, and 2 characters each. So the score is
  # 10 / 4 bits per character. A resample has 16, 10 or 4 bits for 4 characters.
  assert found.value == pytest.approx(2.5)
  assert (found.low, found.high) == pytest.approx((1.0, 4.0))
  assert (found.n, found.command, found.unit) == (2, 'c', 'bits per character')


def test_one_document_has_no_interval():
  found = comparison.of_documents('bits', np.ones(1), np.ones(1), '')
  assert found.low is None and found.high is None


def test_a_value_of_sets_has_an_interval_of_its_standard_error():
  # The standard error of the mean of 100 values with deviation 1 is 0.1.
  values = np.tile([-1.0, 1.0], 50)
  found = comparison.of_sets(
    'a', lambda rows: values[rows].mean() + 3, (100,), '', ''
  )
  assert found.value == pytest.approx(3) and found.n == 100
  assert found.high - found.value == pytest.approx(0.196, rel=0.3)
  assert found.value - found.low == pytest.approx(found.high - found.value)


def test_a_value_of_a_set_with_one_member_has_no_interval():
  found = comparison.of_sets('a', lambda rows: rows.sum(), (1,), '', '')
  assert (found.value, found.low, found.high) == (0, None, None)


def test_the_mean_of_three_runs_has_the_interval_of_student():
  def runs(*values):
    return [
      [Score('a', value, unit='share'), Score(f'only {value}', 1.0)]
      for value in values
    ]

  (found,) = comparison.of_runs(runs(1.0, 2.0, 3.0))
  # The standard error is 1 / sqrt(3), and the factor of two degrees of freedom
  # is 4.303.
  assert (found.name, found.value, found.n, found.unit) == ('a', 2, 3, 'share')
  assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
  same, _ = comparison.of_runs(runs(1.5, 1.5, 1.5))
  assert (same.value, same.low, same.high, same.n) == (1.5, None, None, 3)
  with pytest.raises(ValueError, match='Two runs at least'):
    comparison.of_runs(runs(1.0))
