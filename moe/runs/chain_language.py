"""Scores a language model of protein chains: residues, and their 3Di letters.

All scores stand beside those of n-gram models, whose counts come from the
training chains.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.data.store import Record
from moe.evaluate import comparison, documents, likelihood, ngram
from moe.evaluate.likelihood import Context, Document
from moe.evaluate.score import Score
from moe.modalities import residues
from moe.parallel import multihost
from moe.runs import scoring
from moe.runs.run import TrainedRun
from moe.types import Array

RESIDUES, LETTERS = 'proteins', 'proteins_3di'
_BITS, _SHARE = 'bits per residue', 'share of letters'
_ROWS = 16


class _Chains(NamedTuple):
  """Records of a task in two splits."""

  train: Sequence[Record]
  held_out: Sequence[Record]


def scores(
  trained: TrainedRun, prepare_stores: Callable[..., str], command: str
) -> list[Score]:
  """Scores the validation chains.

  Bits per residue leave out the end marks of chains, for the model and for the
  n-grams.

  Args:
    trained: a run whose id space has residues, perhaps also structure letters.
    prepare_stores: see `moe.runs.scoring.evaluate`.
    command: the command that gives the same numbers again.

  Raises:
    ValueError: if the run has no range of residues.
  """
  sizes = trained.ids.sizes
  if not sizes['residue']:
    raise ValueError(
      'The run must have residues among its ids, got'
      f' {trained.ids}: train with runs/chains_cpu.gin.'
    )

  def records(task: str, split: str) -> list[Record]:
    stores = scoring.task_stores(trained, task, split, prepare_stores)
    return [r for s in stores for r in s.read(range(s.lengths.size))]

  found = _of_residues(
    trained,
    _Chains(records(RESIDUES, 'train'), records(RESIDUES, 'validation')),
    command,
  )
  if sizes['structure']:
    chains = _Chains(records(LETTERS, 'train'), records(LETTERS, 'validation'))
    found += _of_letters(trained, chains, command)
  return found


def _of_residues(
  trained: TrainedRun, chains: _Chains, command: str
) -> list[Score]:
  held_out = [
    _without_end(_document(trained, record)) for record in chains.held_out
  ]
  length = max(len(document.tokens) for document in held_out)
  with jax.set_mesh(trained.mesh):
    nats = likelihood.score_documents(
      trained.functional,
      trained.params,
      trained.state,
      held_out,
      Context(length, length, _ROWS * trained.row_parts),
    )
  sizes = np.array([document.chars for document in held_out])

  def texts(records: Sequence[Record]) -> list[str]:
    codes = [trained.ids.codes('residue', r['tokens']) for r in records]
    return [residues.letters(code) for code in codes]

  train, texts_held_out = texts(chains.train), texts(chains.held_out)
  found = [comparison.of_documents('model', nats, sizes, command, _BITS)]
  for order, name in ((1, 'unigram'), (3, 'trigram')):
    bits = ngram.document_bits(train, texts_held_out, order, with_end=False)
    other = bits * math.log(2)
    found.append(comparison.of_documents(name, other, sizes, command, _BITS))
    less = comparison.compare(nats, other, sizes)
    found.append(
      Score(
        f'model less {name}',
        less.difference,
        less.low,
        less.high,
        len(nats),
        command,
        _BITS,
      )
    )
  return found


def _of_letters(
  trained: TrainedRun, chains: _Chains, command: str
) -> list[Score]:
  right = {
    '3Di, next letter': _num_right(trained, chains.held_out, False),
    '3Di, from the residues alone': _num_right(trained, chains.held_out, True),
  }

  def letters(records: Sequence[Record]) -> list[np.ndarray]:
    return [trained.ids.codes('structure', r['tokens']) for r in records]

  train, held_out = letters(chains.train), letters(chains.held_out)
  for name, order in (('majority', 1), ('trigram', 3)):
    right[f'3Di, {name}'] = num_right_ngram(train, held_out, order)
  sizes = np.array([len(codes) for codes in held_out])
  return [
    comparison.of_shares(name, counts, sizes, command, _SHARE)
    for name, counts in right.items()
  ]


def _document(trained: TrainedRun, record: Record) -> Document:
  return documents.record_document(
    trained.vocabulary, trained.ids, record, trained.functional.extras
  )


def _without_end(document: Document) -> Document:
  """The document with its end mark read, but not scored."""
  weights = np.ones(len(document.tokens), np.float32)
  weights[-1] = 0
  return document._replace(weights=weights)


def _num_right(
  trained: TrainedRun, records: Sequence[Record], is_hidden: bool
) -> np.ndarray:
  """For how many letters of each chain the model's most probable one is right.

  Args:
    trained: the run.
    records: records of the task `proteins_3di`.
    is_hidden: whether the model reads a mask in place of each letter, and all
      letters as one block.

  Returns:
    int [chains].
  """
  ids, functional = trained.ids, trained.functional
  begin = ids.begin('structure')
  held_out = [_document(trained, record) for record in records]
  if is_hidden:
    held_out = [_with_block(document) for document in held_out]
  width = max(len(document.tokens) for document in held_out)
  num_rows = _ROWS * trained.row_parts

  def is_right(logits: Array, targets: Array) -> Array:
    return logits.argmax(axis=-1) == targets

  @jax.jit
  def count(params, state, batch):
    right_BT = likelihood.measure_tokens(
      functional, params, state, batch, is_right
    )
    is_letter_BT = (batch.targets >= begin) & (batch.loss_weights > 0)
    return jnp.sum(right_BT & is_letter_BT, axis=1)

  counts = []
  for first in range(0, len(held_out), num_rows):
    part = held_out[first : first + num_rows]
    rows = [
      likelihood.Window(i, 0, 0, len(document.tokens))
      for i, document in enumerate(part)
    ]
    batch = likelihood.window_batch(part, rows, num_rows, width)
    if is_hidden:
      tokens = np.where(batch.tokens >= begin, ids.mask, batch.tokens)
      batch = batch._replace(tokens=tokens)
    with jax.set_mesh(trained.mesh):
      counted = count(trained.params, trained.state, batch)
    counts.append(multihost.whole(counted)[: len(part)])
  return np.concatenate(counts)


def _with_block(document: Document) -> Document:
  """The document with its scored letters, but not its end mark, as a block."""
  block_ids = np.array(document.block_ids)
  block_ids[(document.weights > 0).nonzero()[0][:-1]] = 2
  return document._replace(block_ids=block_ids)


def num_right_ngram(
  train: Sequence[np.ndarray], held_out: Sequence[np.ndarray], order: int
) -> np.ndarray:
  """How many letters of each held-out chain an n-gram predicts right.

  It predicts the most frequent letter after the order - 1 letters before. If no
  training chain has these letters, it uses fewer of them.

  Args:
    train: letters of each training chain, as codes.
    held_out: letters of each held-out chain.
    order: n of the n-gram.

  Returns:
    int [held-out chains].
  """
  after = collections.defaultdict(collections.Counter)
  for codes in train:
    for end in range(len(codes)):
      for size in range(min(order, end + 1)):
        after[tuple(codes[end - size : end])][int(codes[end])] += 1
  best = {
    context: found.most_common(1)[0][0] for context, found in after.items()
  }

  def guess(codes: np.ndarray, end: int) -> int:
    for size in range(min(order - 1, end), -1, -1):
      if tuple(codes[end - size : end]) in best:
        return best[tuple(codes[end - size : end])]
    return 0

  return np.array(
    [
      sum(guess(codes, end) == codes[end] for end in range(len(codes)))
      for codes in held_out
    ]
  )
