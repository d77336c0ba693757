import itertools

import numpy as np
import pytest

from moe.data.order import Mixture, permuted, scramble


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 17, 100, 1025])
def test_a_permutation_reaches_every_index_once(size):
  for key in range(5):
    images = permuted(np.arange(size), size, scramble(key))
    assert sorted(images.tolist()) == list(range(size))


def test_a_part_of_a_permutation_agrees_with_the_whole():
  whole = permuted(np.arange(1000), 1000, scramble(3))
  index = np.array([999, 0, 500])
  assert np.array_equal(permuted(index, 1000, scramble(3)), whole[index])


def test_every_index_may_have_its_own_key():
  keys = scramble(np.arange(3))
  together = permuted(np.array([5, 5, 5]), 100, keys)
  apart = [permuted(np.array([5]), 100, key)[0] for key in keys]
  assert together.tolist() == apart


def test_permutations_of_three_are_all_about_as_frequent():
  seen = [
    tuple(permuted(np.arange(3), 3, scramble(key)).tolist())
    for key in range(1200)
  ]
  for order in itertools.permutations(range(3)):
    # The expected count is 200, with a standard deviation of 13.
    assert 130 < seen.count(order) < 270


def test_neighbours_are_not_sent_to_neighbours():
  images = permuted(np.arange(10_000), 10_000, scramble(0))
  # The distance of two independent uniform draws is 1/3 of the range on
  # average.
  assert abs(np.abs(np.diff(images)).mean() / 10_000 - 1 / 3) < 0.02


def test_the_order_is_the_same_on_every_machine():
  # These values must not change, since resumed runs would then read other data.
  assert int(scramble(1)) == 0x910A2DEC89025CC1
  assert permuted(np.arange(6), 6, scramble(7)).tolist() == [4, 2, 1, 5, 0, 3]


def test_two_equal_stores_take_turns():
  store, number = Mixture([1, 1]).locate(np.arange(6))
  assert store.tolist() == [0, 1, 0, 1, 0, 1]
  assert number.tolist() == [0, 0, 1, 1, 2, 2]


def test_one_store_gives_every_row():
  store, number = Mixture([0.3]).locate(np.array([0, 5, 10**12]))
  assert store.tolist() == [0, 0, 0]
  assert number.tolist() == [0, 5, 10**12]


def test_every_store_has_its_share_to_within_two_rows_at_any_time():
  rates = np.array([0.61, 0.3, 0.08, 0.01])
  store, _ = Mixture(rates).locate(np.arange(100_000))
  for index, rate in enumerate(rates):
    given = np.cumsum(store == index)
    expected = rate * np.arange(1, 100_001)
    # A count may be off by two rows, and by the rounding of the shares to
    # multiples of 1 / 65536.
    assert np.abs(given - expected).max() < 2 + 100_000 / 65536


def test_a_store_gives_its_rows_in_order_without_gaps():
  store, number = Mixture([5, 2, 1]).locate(np.arange(70_000, 210_000))
  for index in range(3):
    own = number[store == index]
    assert np.array_equal(own, np.arange(own[0], own[0] + own.size))


def test_a_rate_too_small_for_the_pattern_still_gives_rows():
  mixture = Mixture([1, 1e-9])
  assert mixture.shares[1] > 0
  assert mixture.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize('rates', [[], [1, 0], [-1], [float('nan'), 1]])
def test_rates_that_are_not_positive_are_refused(rates):
  with pytest.raises(ValueError, match='Rates must be positive'):
    Mixture(rates)
