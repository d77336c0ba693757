"""From the tokens of documents to the places of a batch.

A place of a batch reads one token and predicts the next one. So what belongs to
the tokens of a document comes to its places in two ways: `predicted` as it is,
`read` one place later. Nothing is read before the first token of a document.
"""

from collections.abc import Sequence

import numpy as np

from moe.data.store import Record


def predicted(
  arrays: Sequence[np.ndarray], starts: Sequence[int], sizes: Sequence[int]
) -> np.ndarray:
  """Parts of arrays, one after the other: of the tokens that places predict.

  Args:
    arrays: [tokens, ...], one for each piece.
    starts: first token of each piece.
    sizes: tokens of each piece.

  Returns:
    [places, ...].
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
  """The same parts of the tokens that places read; 0 before a document.

  A piece reads the token before it, so that its first token is scored too.
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

  A place is in the block of the token that it reads, or else of the token that
  it predicts: so the first token of a block is predicted from all of it, too.
  Tokens of one block are neighbours, so no place sees a later token that is
  outside of the block.

  Args:
    read_ids: blocks of the tokens that are read, 0 for none.
    predicted_ids: blocks of the tokens that are predicted.
  """
  return np.where(read_ids > 0, read_ids, predicted_ids)


def block_ids(record: Record) -> np.ndarray:
  """Blocks of a document's tokens; zeros where it has none."""
  found = record.get('block_ids')
  return np.zeros(record['tokens'].size, np.int32) if found is None else found
