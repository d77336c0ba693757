"""A number out of range raises one sentence that names the bounds."""

import math

import pytest

from moe import bounds


def message(check, *args, **options):
  with pytest.raises(bounds.OutOfRange) as error:
    check(*args, **options)
  return str(error.value)


@pytest.mark.parametrize('value', [0, 0.5, 1])
def test_a_bound_that_is_named_at_least_or_at_most_may_be_reached(value):
  assert bounds.within('rate', value, 'a share', least=0, most=1) is None


@pytest.mark.parametrize('value', [0, 1])
def test_a_bound_that_is_named_above_or_below_may_not(value):
  with pytest.raises(bounds.OutOfRange):
    bounds.within('rate', value, 'a share', above=0, below=1)


def test_the_advice_depends_on_the_side():
  low = message(bounds.within, 'rate', -1, 'a share', least=0, below=1)
  assert low == 'rate=-1 must be at least 0 and below 1 (a share): raise it.'
  high = message(bounds.within, 'rate', 1.5, 'a share', least=0, below=1)
  assert high == 'rate=1.5 must be at least 0 and below 1 (a share): lower it.'


@pytest.mark.parametrize('value', [math.inf, -math.inf, math.nan, 1e39])
def test_what_float32_cannot_hold_is_out_of_every_range(value):
  assert 'rate=' in message(bounds.within, 'rate', value, 'any number')


@pytest.mark.parametrize('value', [2**31, 10**400])
def test_what_int32_cannot_hold_is_out_of_every_range(value):
  expected = 'at least 1 and at most 2147483647 (experts): lower it.'
  assert expected in message(bounds.at_least, 1, 'num', value, 'experts')


def test_a_seed_has_32_bits():
  bounds.seed('SEED', 0)
  bounds.seed('SEED', 2**32 - 1)
  assert 'at most 4294967295' in message(bounds.seed, 'SEED', 2**32)
  assert 'at least 0' in message(bounds.seed, 'SEED', -1)


def test_a_pattern_must_compile():
  bounds.regular_expression('FROZEN', 'a/.*')
  expected = "FROZEN='(' must be a regular expression"
  assert expected in message(bounds.regular_expression, 'FROZEN', '(')


def test_rates_are_none_or_one_for_each_source():
  bounds.one_for_each('RATES', (), ('a', 'b'))
  bounds.one_for_each('RATES', (1.0, 2.0), ('a', 'b'))
  with pytest.raises(ValueError, match=r'RATES=\(1.0,\) must have a rate for'):
    bounds.one_for_each('RATES', (1.0,), ('a', 'b'))
