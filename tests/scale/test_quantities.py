"""No number is shown as 0.00 or with an exponent."""

import pytest

from moe.scale import quantities


@pytest.mark.parametrize(
  'value, text',
  [
    (1_748_943_388_672, '1.749 TFLOP'),
    (2_048, '2.048 kFLOP'),
    (7, '7 FLOP'),
  ],
)
def test_large_numbers_have_a_decimal_prefix(value, text):
  assert quantities.short(value, 'FLOP') == text


@pytest.mark.parametrize(
  'value, text',
  [
    (6_400 * 2**30, '6,400.00 GiB'),
    (5.1 * 2**20, '5.10 MiB'),
    (2_048, '2.00 KiB'),
    (512, '512 bytes'),
    (0, '0 bytes'),
  ],
)
def test_small_sizes_are_not_zero_gib(value, text):
  assert quantities.in_bytes(value) == text


@pytest.mark.parametrize(
  'hours, text',
  [
    (1_234_567, '1.235 Mh'),
    (0.5, '0.5 h'),
    (0.01, '36 s'),
    (1.026e-9, '3.694 us'),
    (1e-12, '0.0036 us'),
  ],
)
def test_short_runs_are_given_in_seconds(hours, text):
  assert quantities.in_hours(hours) == text


def test_one_thing_has_no_plural():
  assert quantities.counted(1, 'document') == '1 document'
  assert quantities.counted(2_000, 'document') == '2,000 documents'
  assert quantities.counted(0, 'document') == '0 documents'
