"""Scores a language model of protein chains: residues, and their 3Di letters.

Only tasks that the run has trained are scored. All scores stand beside those of
n-gram models, whose counts come from the training chains.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.data.order import scramble
from moe.data.store import Record
from moe.data.transforms import Transform
from moe.evaluate import comparison, likelihood, ngram
from moe.evaluate.likelihood import Context, Document
from moe.evaluate.score import Score
from moe.modalities import residues
from moe.parallel import multihost
from moe.runs import chain_documents, scoring
from moe.runs.run import TrainedRun
from moe.types import Array

CAUSAL, MASKED = 'proteins', 'proteins_masked'
LETTERS, AT_ONCE = 'proteins_3di', 'proteins_3di_at_once'
# How often a chain is scored by masked modelling, each time with other residues
# hidden.
NUM_MASKINGS = 8
_BITS, _SHARE = 'bits per residue', 'share of letters'


class _Chains(NamedTuple):
  """Records of a task in two splits."""

  train: Sequence[Record]
  held_out: Sequence[Record]


def scores(
  trained: TrainedRun,
  prepare_stores: Callable[..., str],
  longest: int,
  command: str,
) -> list[Score]:
  """Scores the validation chains by the tasks that the run has trained.

  Bits per residue leave out the end marks of chains, for the model and for the
  n-grams.

  Args:
    trained: a run that has trained one of the tasks of residues.
    prepare_stores: see `moe.runs.scoring.evaluate`.
    longest: validation chains with more residues are left out.
    command: the command that gives the same numbers again.

  Raises:
    ValueError: if the run has trained none of these tasks, or if no chain is
      short enough.
  """

  def records(task: str, split: str) -> list[Record]:
    stores = scoring.task_stores(trained, task, split, prepare_stores)
    return [r for s in stores for r in s.read(range(s.lengths.size))]

  def size(record: Record) -> int:
    return trained.ids.codes('residue', record['tokens']).size

  def chains(task: str) -> _Chains:
    held_out = [r for r in records(task, 'validation') if size(r) <= longest]
    if not held_out:
      raise ValueError(
        f'--longest={longest} must leave a chain, but all validation chains are'
        ' longer: raise it.'
      )
    return _Chains(records(task, 'train'), held_out)

  data = trained.run.data
  mixed = scoring.task_stores(trained, data.train, 'train', prepare_stores)
  tasks = {store.manifest['task'] for store in mixed}
  found = []
  if CAUSAL in tasks:
    found += _of_residues(trained, chains(CAUSAL), command)
  if MASKED in tasks:
    hide = dict(data.transforms)[MASKED]
    # The records of the causal task have the same tokens, but no block.
    found += _of_masked(trained, chains(CAUSAL), hide, command)
  is_hidden = {
    name: hidden
    for task, name, hidden in (
      (LETTERS, '3Di, next letter', False),
      (AT_ONCE, '3Di, from the residues alone', True),
    )
    if task in tasks
  }
  if is_hidden:
    found += _of_letters(trained, chains(LETTERS), is_hidden, command)
  if not found:
    raise ValueError(
      f'The run must have trained one of {CAUSAL}, {MASKED}, {LETTERS} and'
      f' {AT_ONCE}, got {", ".join(sorted(tasks))}: train with'
      ' runs/chains_cpu.gin or runs/chains_masked_cpu.gin.'
    )
  return found


def _of_residues(
  trained: TrainedRun, chains: _Chains, command: str
) -> list[Score]:
  held_out = list(map(_without_end, _documents(trained, chains.held_out)))
  length = max(len(document.tokens) for document in held_out)
  with jax.set_mesh(trained.mesh):
    nats = likelihood.score_documents(
      trained.functional,
      trained.params,
      trained.state,
      held_out,
      Context(length, length, chain_documents.ROWS * trained.row_parts),
    )
  texts = [_text(trained, record['tokens']) for record in chains.held_out]
  train = [_text(trained, record['tokens']) for record in chains.train]
  orders = {'unigram': 1, 'trigram': 3}
  return _beside_ngrams(nats, train, texts, orders, command)


def _of_masked(
  trained: TrainedRun, chains: _Chains, hide: Transform, command: str
) -> list[Score]:
  """Bits of hidden residues, which the model predicts from all others."""
  functional, ids = trained.functional, trained.ids
  score = likelihood.build_scorer(functional)
  causal = _documents(trained, chains.held_out)
  nats, texts = np.zeros(len(causal)), [''] * len(causal)
  for number in range(NUM_MASKINGS):
    blocks, inputs = [], []
    for i, document in enumerate(causal):
      block = chain_documents.as_block(document._replace(weights=None))
      record = {'tokens': block.tokens, 'block_ids': block.block_ids}
      read = hide(record, scramble(i * NUM_MASKINGS + number), ids)['inputs']
      is_hidden = read != block.tokens
      weights = is_hidden.astype(np.float32)
      blocks.append(block._replace(weights=weights))
      inputs.append(read)
      texts[i] += _text(trained, block.tokens[is_hidden])
    found = []
    for batch, size in chain_documents.batches(trained, blocks, inputs):
      with jax.set_mesh(trained.mesh):
        nats_BT = score(trained.params, trained.state, batch)
      found.append(multihost.whole(nats_BT)[:size].sum(axis=1))
    nats += np.concatenate(found)
  train = [_text(trained, record['tokens']) for record in chains.train]
  # Longer n-grams would read residues that are hidden.
  return _beside_ngrams(
    nats, train, texts, {'unigram': 1}, command, 'hidden residues, '
  )


def _beside_ngrams(
  nats: np.ndarray,
  train: Sequence[str],
  texts: Sequence[str],
  orders: dict[str, int],
  command: str,
  prefix: str = '',
) -> list[Score]:
  """The score of a model, those of n-grams, and the differences.

  Args:
    nats: the model's nats of each text.
    train: training texts of the n-grams.
    texts: the scored texts.
    orders: name of each n-gram -> its order.
    command: the command that gives the same numbers again.
    prefix: begins the names of the scores.
  """
  sizes = np.array([len(text) for text in texts])
  score = lambda name, nats: comparison.of_documents(
    prefix + name, nats, sizes, command, _BITS
  )
  found = [score('model', nats)]
  for name, order in orders.items():
    bits = ngram.document_bits(train, texts, order, with_end=False)
    other = bits * math.log(2)
    less = comparison.compare(nats, other, sizes)
    interval = less.difference, less.low, less.high
    name_of_less = f'{prefix}model less {name}'
    found += [
      score(name, other),
      Score(name_of_less, *interval, len(nats), command, _BITS),
    ]
  return found


def _of_letters(
  trained: TrainedRun,
  chains: _Chains,
  is_hidden: dict[str, bool],
  command: str,
) -> list[Score]:
  """The shares of right letters; `is_hidden` is by name, see `_num_right`."""
  right = {
    name: _num_right(trained, chains.held_out, hidden)
    for name, hidden in is_hidden.items()
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


def _documents(
  trained: TrainedRun, records: Sequence[Record]
) -> list[Document]:
  return [chain_documents.document(trained, record) for record in records]


def _text(trained: TrainedRun, tokens: np.ndarray) -> str:
  """The residues among some tokens, as letters."""
  return residues.letters(trained.ids.codes('residue', tokens))


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
  held_out = _documents(trained, records)
  inputs = [document.tokens for document in held_out]
  if is_hidden:
    held_out = [chain_documents.as_block(document) for document in held_out]
    inputs = [np.where(read >= begin, ids.mask, read) for read in inputs]

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
  for batch, size in chain_documents.batches(trained, held_out, inputs):
    with jax.set_mesh(trained.mesh):
      counted = count(trained.params, trained.state, batch)
    counts.append(multihost.whole(counted)[:size])
  return np.concatenate(counts)


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
