"""Turns arrays with a value per token into arrays with a value per place.

A place is one entry of a batch [B, T]: it reads one token and predicts the next
one. `predicted` gives each place the value of the token that it predicts.
`read` gives each place the value of the token that it reads. The first place of
a document reads no token.
"""

from collections.abc import Sequence

import numpy as np

from moe.data.store import Record


def predicted(
  arrays: Sequence[np.ndarray], starts: Sequence[int], sizes: Sequence[int]
) -> np.ndarray:
  """For each place, the value of the token that it predicts.

  Args:
    arrays: for each segment, the values [tokens, ...] of its whole document.
    starts: index in the document of each segment's first token.
    sizes: number of tokens of each segment.

  Returns:
    [places, ...], one segment after the other.
  """
  return np.concatenate(
    [
      array[start : start + size]
      for array, start, size in zip(arrays, starts, sizes, strict=True)
    ]
  )


def read(
  arrays: Sequence[np.ndarray], starts: Sequence[int], sizes: Sequence[int]
) -> np.ndarray:
  """For each place, the value of the token that it reads.

  The first place of a document reads no token and gets 0. The first place of a
  later segment of the document reads the token before the segment, so the
  segment's first token is scored too. The arguments are those of `predicted`.
  """
  own = predicted(arrays, starts, sizes)
  shifted = np.empty_like(own)
  shifted[1:] = own[:-1]
  first = np.cumsum(sizes) - sizes
  shifted[first] = [
    array[start - 1] if start else np.zeros_like(array[0])
    for array, start in zip(arrays, starts, strict=True)
  ]
  return shifted


def place_blocks(read_ids: np.ndarray, predicted_ids: np.ndarray) -> np.ndarray:
  """The block of each place.

  A place is in the block of the token that it reads. If this token has no
  block, the place is in the block of the token that it predicts. So the first
  token of a block is also predicted from the whole block. Tokens of one block
  are neighbours, so no place sees a later token outside its block.

  Args:
    read_ids: for each place, block of the token that it reads; 0 for none.
    predicted_ids: for each place, block of the token that it predicts.
  """
  return np.where(read_ids > 0, read_ids, predicted_ids)


def block_ids(record: Record) -> np.ndarray:
  """The block of each token of a document; 0 for a token without a block."""
  found = record.get('block_ids')
  return np.zeros(record['tokens'].size, np.int32) if found is None else found
