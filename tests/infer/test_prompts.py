"""Prompts as arrays."""

import numpy as np
import pytest

from moe.infer.prompts import RowPrompt, bucket, stacked


@pytest.mark.parametrize(
  ('length', 'expected'), [(1, 16), (16, 16), (17, 32), (100, 128)]
)
def test_lengths_are_padded_to_powers_of_two(length, expected):
  assert bucket(length) == expected


def test_rows_start_with_the_start_id_and_equal_tables_are_stacked_once():
  one, other = np.zeros((1, 9), np.int16), np.ones((2, 9), np.int16)
  prompts = [RowPrompt([5, 6], one), RowPrompt([], other), RowPrompt([7], one)]
  batch, jumps = stacked(prompts, width=16, seed=0, row_parts=4)
  assert batch.length_B.tolist() == [3, 1, 2, 0]  # The last row is unused.
  assert batch.tokens_BT[:, :4].tolist() == [
    [0, 5, 6, 0], [0, 0, 0, 0], [0, 7, 0, 0], [0, 0, 0, 0]
  ]  # fmt: skip
  # Row 0 of the stacked tables is `one`, rows 1 and 2 are `other`.
  assert batch.jump_row_B.tolist() == [0, 1, 0, 0]
  assert jumps[:4, 0].tolist() == [0, 1, 1, -1]
