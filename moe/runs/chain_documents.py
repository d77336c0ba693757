"""Makes batches of chains that a language model reads, a chain in each row."""

from collections.abc import Iterator, Sequence

import numpy as np

from moe.data.store import Record
from moe.evaluate import documents, likelihood
from moe.evaluate.likelihood import Document
from moe.runs.run import TrainedRun
from moe.types import TokenBatch

# Rows of a batch, for each part of the mesh that has rows of its own.
ROWS = 16


def document(trained: TrainedRun, record: Record) -> Document:
  """The document of a record of a task whose residues are read one by one."""
  return documents.record_document(
    trained.vocabulary, trained.ids, record, trained.functional.extras
  )


def as_block(one: Document) -> Document:
  """The document with its scored tokens, but not its end mark, as a block."""
  size = len(one.tokens)
  if one.block_ids is None:
    block_ids = np.zeros(size, np.int32)
  else:
    block_ids = np.array(one.block_ids)
  weights = np.ones(size) if one.weights is None else one.weights
  block_ids[(weights > 0).nonzero()[0][:-1]] = 2
  return one._replace(block_ids=block_ids)


def batches(
  trained: TrainedRun, given: Sequence[Document], inputs: Sequence[np.ndarray]
) -> Iterator[tuple[TokenBatch, int]]:
  """Yields (batch, number of documents in it); each row has one document.

  All batches have the length of the longest document.

  Args:
    trained: the run.
    given: the documents.
    inputs: what the model reads in place of the tokens of each document.
  """
  width = max(len(one.tokens) for one in given)
  num_rows = ROWS * trained.row_parts
  for first in range(0, len(given), num_rows):
    part = given[first : first + num_rows]
    rows = [
      likelihood.Window(i, 0, 0, len(one.tokens)) for i, one in enumerate(part)
    ]
    batch = likelihood.window_batch(part, rows, num_rows, width)
    # A place reads the token before the one that it predicts.
    for row, read in enumerate(inputs[first : first + num_rows]):
      batch.tokens[row, 1 : read.size] = read[:-1]
    yield batch, len(part)
