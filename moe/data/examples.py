"""From the tokens of documents to the places of a batch.

A place is one entry of a batch [B, T]: it reads one token and predicts the next
one. So an array with one value per token becomes an array with one value per
place in two ways. `predicted` takes the values of the tokens that the places
predict, `read` those of the tokens that they read. The first place of a
document reads no token.
"""

from collections.abc import Sequence

import numpy as np

from moe.data.store import Record


def predicted(
  arrays: Sequence[np.ndarray], starts: Sequence[int], sizes: Sequence[int]
) -> np.ndarray:
  """Values of the tokens that places predict, one segment after the other.

  Args:
    arrays: [tokens, ...], values of all tokens of the document of each segment.
    starts: first token of each segment.
    sizes: tokens of each segment.

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
  """Values of the tokens that places read; 0 at the first place of a document.

  A segment that continues a document reads the token before the segment first,
  so the first token of the segment is scored too. Arguments as for `predicted`.
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

  A place is in the block of the token that it reads. If that token has no
  block, the place is in the block of the token that it predicts: so the first
  token of a block, too, is predicted from the whole block. Tokens of one block
  are neighbours, so no place sees a later token outside its block.

  Args:
    read_ids: blocks of the tokens that are read, 0 for none.
    predicted_ids: blocks of the tokens that are predicted.
  """
  return np.where(read_ids > 0, read_ids, predicted_ids)


def block_ids(record: Record) -> np.ndarray:
  """Blocks of a document's tokens; zeros where it has none."""
  found = record.get('block_ids')
  return np.zeros(record['tokens'].size, np.int32) if found is None else found
