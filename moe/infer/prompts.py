"""Prompts as the arrays that decoding reads."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from moe.data import examples
from moe.types import Array

# The id before every document. Rows are padded with it too. No token attends to
# the padding.
START_ID = 0
# The widths of prompts and samples are rounded up to a power of two, so that
# few programs are compiled. This is the smallest width.
SMALLEST_BUCKET = 16


class RowPrompt(NamedTuple):
  """The prompt of one sample, with the rules for the text after it.

  Attributes:
    tokens: ids, without the start id; may be empty.
    table: jump table, as `forms` makes it.
    blocks: block of each token, 0 for none; () if there is no block.
    extras: name -> further array [tokens, ...] that the model reads, first for
      the tokens of the prompt and then for those of the sample. Missing values
      at the end are 0. All prompts have the same names.
  """

  tokens: Sequence[int]
  table: np.ndarray
  blocks: Sequence[int] = ()
  extras: Mapping[str, np.ndarray] = {}


class Prompts(NamedTuple):
  """A batch of prompts, one row per sample.

  Attributes:
    tokens_BT: int32, right padded; each row starts with `START_ID`.
    length_B: int32, tokens of each row without padding; 0 for an unused row.
    jump_row_B: int32, the row of the jump table of `moe.infer.forms` at which
      each sample starts.
    key_B: typed PRNG keys.
    block_BT: int32, block of each token; None if all are 0.
    extras: name -> further array [B, S, ...] that the model reads; S counts the
      tokens of the prompt and of the sample.
  """

  tokens_BT: Array
  length_B: Array
  jump_row_B: Array
  key_B: Array
  block_BT: Array | None = None
  extras: dict[str, Array] = {}


def bucket(length: int, smallest: int = SMALLEST_BUCKET) -> int:
  """The smallest power of two that is at least `length` and `smallest`."""
  return 1 << (int(max(length, smallest)) - 1).bit_length()


def stacked(
  prompts: Sequence[RowPrompt],
  width: int,
  seed: int,
  row_parts: int,
  first_index: int = 0,
) -> tuple[Prompts, np.ndarray]:
  """Stacks prompts to a batch.

  Args:
    prompts: at least one.
    width: largest number of tokens of a sample; `extras` has places for them.
    seed: seed of the draws; the key of a row depends on it and on its index.
    row_parts: number of parts into which devices divide the rows; unused rows
      are added until the parts are equal.
    first_index: index of the first row.

  Returns:
    The batch, and all different jump tables one below the other, int16 [jump
    rows, pieces]. Rows of -1 fill them up to a power of two.
  """
  num_rows = math.ceil(len(prompts) / row_parts) * row_parts
  lengths = np.zeros(num_rows, np.int32)
  lengths[: len(prompts)] = [1 + len(p.tokens) for p in prompts]
  tokens = np.full((num_rows, bucket(lengths.max())), START_ID, np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, 1 : lengths[row]] = prompt.tokens
  block_BT = None
  if any(prompt.blocks for prompt in prompts):
    block_BT = np.zeros_like(tokens)
  for row, prompt in enumerate(prompts):
    if prompt.blocks:
      block_BT[row, : lengths[row]] = examples.place_blocks(
        np.array([0, *prompt.blocks]), np.array([*prompt.blocks, 0])
      )
  num_places = tokens.shape[1] + width
  extras = {
    name: _of_places([p.extras[name] for p in prompts], num_rows, num_places)
    for name in prompts[0].extras
  }
  # Each jump table is stacked once, even if several prompts use it.
  starts, tables, num_jump_rows = {}, [], 0
  for table in (prompt.table for prompt in prompts):
    if id(table) not in starts:
      starts[id(table)] = num_jump_rows
      tables.append(table)
      num_jump_rows += len(table)
  jump_rows = np.zeros(num_rows, np.int32)
  jump_rows[: len(prompts)] = [starts[id(p.table)] for p in prompts]
  jumps = np.full(
    (bucket(num_jump_rows), prompts[0].table.shape[1]), -1, np.int16
  )
  jumps[:num_jump_rows] = np.concatenate(tables)
  rows = first_index + np.arange(num_rows, dtype=np.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
  return Prompts(tokens, lengths, jump_rows, keys, block_BT, extras), jumps


def _of_places(
  values: Sequence[np.ndarray], num_rows: int, num_places: int
) -> np.ndarray:
  """Stacks the values of each row's tokens as [rows, places, ...].

  Place 0 is the start id; its value and all missing values are 0.
  """
  shape = (num_rows, num_places, *values[0].shape[1:])
  found = np.zeros(shape, values[0].dtype)
  for row, own in enumerate(values):
    found[row, 1 : 1 + len(own)] = own[: num_places - 1]
  return found
