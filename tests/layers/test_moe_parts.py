"""Routing groups fit on the devices, or an error says what to change."""

import pytest

from moe.layers.moe_parts import check_groups


def divided(sizes):
  """(number of parts of the batch, number of parts of each sequence)."""
  return sizes.get('data', 1), sizes.get('context', 1)


@pytest.mark.parametrize(
  'batch, length, group_size, sizes',
  [
    (8, 16, 16, {}),
    (8, 16, 4, {'data': 2, 'context': 4}),  # A device has 4 x 4 tokens.
    (8, 16, 32, {'data': 4}),  # A device has 2 x 16 tokens, so one group.
  ],
)
def test_groups_that_fit_are_accepted(batch, length, group_size, sizes):
  check_groups(batch, length, group_size, *divided(sizes))


@pytest.mark.parametrize(
  'batch, length, group_size, sizes, message',
  [
    (8, 16, 6, {}, 'GROUP_SIZE=6 must divide the 8 x 16 tokens'),
    # In the next three cases, a group has the tokens of 1.5 rows, of 4 rows,
    # and of 1 row. A device has 8 rows, 2 rows, and 8 halves of rows.
    (8, 16, 24, {}, 'GROUP_SIZE=24 must divide'),
    (8, 16, 64, {'data': 4}, 'the 2 x 16 tokens'),
    (8, 16, 16, {'context': 2}, 'the 8 x 8 tokens'),
    (6, 16, 16, {'data': 4}, 'divisible by the 4 x 1 devices'),
    (8, 15, 15, {'context': 2}, 'divisible by the 1 x 2 devices'),
  ],
)
def test_groups_that_do_not_fit_are_refused(
  batch, length, group_size, sizes, message
):
  with pytest.raises(ValueError, match=message):
    check_groups(batch, length, group_size, *divided(sizes))
