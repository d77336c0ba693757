"""Measures the nats that a model needs for each document of a list.

No token attends to another document. A document that is longer than the context
is read in windows, and exactly one of them scores each token that counts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.data import examples
from moe.infer.decode import Functional
from moe.infer.prompts import START_ID, bucket
from moe.parallel import multihost
from moe.train import loss
from moe.types import PLACE_FIELDS, Array, PyTree, TokenBatch

# Logits of at most this many tokens exist at once, to bound the memory.
TOKENS_PER_CHUNK = 2048
# A character that an unknown token hides costs as much as one of this many
# equally likely symbols: all code points of Unicode, and an end symbol.
NUM_SPELLING_SYMBOLS = 0x110000 + 1


class Document(NamedTuple):
  """One document to score.

  Attributes:
    tokens: int32 ids; the last one is the end mark, if there is any.
    chars: Unicode code points of the scored text, end mark not counted.
    bytes: bytes of the scored text in UTF-8.
    weights: for each token 1 if it is scored, 0 if it is not (as in a prompt);
      None scores all tokens.
    num_unknown: scored tokens that are the unknown token.
    hidden_chars: code points that the unknown tokens stand for.
    block_ids: block of each token, 0 for none; None if there is no block.
    modality: modality of each token; None if all are text.
    extras: name -> further array [tokens, ...] that the model reads. All
      documents have the same names.
  """

  tokens: np.ndarray
  chars: int
  bytes: int
  weights: np.ndarray | None = None
  num_unknown: int = 0
  hidden_chars: int = 0
  block_ids: np.ndarray | None = None
  modality: np.ndarray | None = None
  extras: dict[str, np.ndarray] = {}


class Window(NamedTuple):
  """A part of a document: its targets are the tokens [start, end).

  Only the tokens [first, end) are scored.
  """

  document: int
  start: int
  first: int
  end: int


class Context(NamedTuple):
  """Settings for the windows and batches of documents.

  Attributes:
    length: tokens of the longest window.
    stride: tokens that a window scores, except the first and the last of a
      document. Before these tokens, the window reads length - stride tokens
      again, as their context.
    batch_size: windows of full length in a batch. A batch of shorter windows
      may have more windows, as long as it has no more tokens.
  """

  length: int
  stride: int
  batch_size: int


def check_context(context: Context) -> None:
  """Raises ValueError if a setting of `Context` is out of range."""
  if context.length < 1 or context.batch_size < 1:
    raise ValueError(
      'sequence length and batch size must be at least 1, got '
      f'{context.length} and {context.batch_size}.'
    )
  if not 1 <= context.stride <= context.length:
    raise ValueError(
      f'stride must be from 1 to the sequence length {context.length}, got '
      f'{context.stride}: half the sequence length is a fair choice.'
    )


def windows(document: int, num_tokens: int, context: Context) -> list[Window]:
  """Cuts a document into windows; exactly one window scores each token."""
  start, end = 0, min(num_tokens, context.length)
  cut = [Window(document, 0, 0, end)]
  while end < num_tokens:
    start, first = start + context.stride, end
    end = min(num_tokens, start + context.length)
    cut.append(Window(document, start, first, end))
  return cut


def batches(
  cut: Sequence[Window], context: Context
) -> Iterator[tuple[int, int, list[Window]]]:
  """Groups windows of similar length into batches, the longest first.

  Yields:
    (B, T, at most B windows that fit in T). B is a multiple of the batch size,
    and T is a power of two or the length of the context. Every T costs a
    compilation. So if too few windows have the same T, they join the windows of
    the next larger T.
  """
  by_width = {}
  for window in cut:
    width = min(bucket(window.end - window.start), context.length)
    by_width.setdefault(width, []).append(window)
  widths = sorted(by_width)
  for width, longer in zip(widths, widths[1:], strict=False):
    if len(by_width[width]) < context.batch_size * (context.length // width):
      by_width[longer] += by_width.pop(width)
  for width, members in sorted(by_width.items(), reverse=True):
    filled = math.ceil(len(members) / context.batch_size)
    num_rows = context.batch_size * min(filled, context.length // width)
    for i in range(0, len(members), num_rows):
      yield num_rows, width, members[i : i + num_rows]


def window_batch(
  documents: Sequence[Document],
  members: Sequence[Window],
  num_rows: int,
  width: int,
) -> TokenBatch:
  """Makes a batch with one window per row; unused rows and places are padding.

  A window begins with the token before its first target, or with the start id
  if there is no such token. Positions begin at 0 in every window.
  """
  rows = np.zeros((num_rows, width), np.int32)
  batch = TokenBatch(*(rows.copy() for _ in PLACE_FIELDS))
  batch = batch._replace(
    loss_weights=rows.astype(np.float32),
    extras={
      name: np.zeros((num_rows, width, *values.shape[1:]), values.dtype)
      for name, values in documents[0].extras.items()
    },
  )
  for row, window in enumerate(members):
    document = documents[window.document]
    tokens = np.asarray(document.tokens)
    size = window.end - window.start
    before = tokens[window.start - 1] if window.start else START_ID
    batch.tokens[row, 0] = before
    batch.tokens[row, 1:size] = tokens[window.start : window.end - 1]
    batch.targets[row, :size] = tokens[window.start : window.end]
    scored = slice(window.first, window.end)
    weights = 1 if document.weights is None else document.weights[scored]
    batch.loss_weights[row, window.first - window.start : size] = weights
    batch.segment_ids[row, :size] = 1
    batch.positions[row, :size] = np.arange(size)
    cut = [window.start], [size]
    if document.block_ids is not None:
      blocks = [document.block_ids]
      batch.block_ids[row, :size] = examples.place_blocks(
        examples.read(blocks, *cut), examples.predicted(blocks, *cut)
      )
    if document.modality is not None:
      batch.modality[row, :size] = examples.read([document.modality], *cut)
    for name, values in document.extras.items():
      batch.extras[name][row, :size] = examples.read([values], *cut)
  return batch


def build_scorer(functional: Functional) -> Callable[..., Array]:
  """Builds the jitted `score(params, state, batch) -> nats_BT`.

  The nats are multiplied by the loss weights.
  """

  def token_nats(logits: Array, targets: Array) -> Array:
    return loss.token_nats(logits, targets)[0]

  def score(params: PyTree, state: PyTree, batch: TokenBatch) -> Array:
    nats_BT = measure_tokens(functional, params, state, batch, token_nats)
    # The nats of padding can have any value, even NaN. We set them to 0, so
    # that no sum includes them.
    return jnp.where(batch.loss_weights > 0, nats_BT * batch.loss_weights, 0.0)

  return jax.jit(score)


def measure_tokens(
  functional: Functional,
  params: PyTree,
  state: PyTree,
  batch: TokenBatch,
  measure: Callable[[Array, Array], PyTree],
) -> PyTree:
  """Computes `measure(logits, targets)` of every token, as arrays [B, T].

  Logits of at most `TOKENS_PER_CHUNK` tokens exist at once.
  """
  outputs = functional.apply(params, state, batch, None, False)
  B, T = batch.tokens.shape
  num_chunks = _num_chunks(B, T)

  def chunks(x_BT: Array) -> Array:
    # We split the sequence and not the batch, so that no row moves to another
    # device.
    split = x_BT.reshape(B, num_chunks, T // num_chunks, *x_BT.shape[2:])
    return jnp.moveaxis(split, 1, 0)

  def measure_chunk(chunk: tuple[Array, Array]) -> PyTree:
    hidden, targets = chunk
    logits = functional.head(params, hidden)
    return measure(functional.restrict(logits, targets), targets)

  measured = jax.lax.map(
    measure_chunk, (chunks(outputs.hidden), chunks(batch.targets))
  )
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, T), measured)


def _num_chunks(B: int, T: int) -> int:
  """Smallest number of equal chunks of T that respects `TOKENS_PER_CHUNK`.

  It is T if no number does.
  """
  for num_chunks in range(1, T):
    if T % num_chunks == 0 and B * T <= num_chunks * TOKENS_PER_CHUNK:
      return num_chunks
  return T


def score_documents(
  functional: Functional,
  params: PyTree,
  state: PyTree,
  documents: Sequence[Document],
  context: Context,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
  """The nats of every document: the sum over its scored tokens.

  An unknown token costs more than its own nats. The characters that it hides,
  and an end symbol, are added as draws from `NUM_SPELLING_SYMBOLS` equally
  likely symbols. So a vocabulary does not score better because it lacks a
  character.

  Args:
    functional: the model, which drops no token in evaluation.
    params: parameters of the model.
    state: model state, such as router biases.
    documents: the documents to score.
    context: settings for windows and batches. Only `stride` and `length` change
      the scores by more than rounding.
    on_progress: called with (windows scored, all windows) after each batch.

  Returns:
    float64 [documents]; the host adds up the nats of tokens. Another batch size
    or number of devices changes the sums only by the rounding of float32
    logits.

  Raises:
    ValueError: if a setting of `context` is out of range, a document has no
      token, a document with a block is longer than a window, or a score is not
      finite.
  """
  check_context(context)
  for i, document in enumerate(documents):
    if not len(document.tokens):
      raise ValueError(
        f'document {i} must hold at least its end mark, got no token.'
      )
    size, has_block = len(document.tokens), document.block_ids is not None
    if has_block and size > context.length:
      raise ValueError(
        f'document {i} has a block and must fit into the context of'
        f' {context.length} tokens, got {size} tokens: use a longer context.'
      )
  cut = [
    window
    for i, document in enumerate(documents)
    for window in windows(i, len(document.tokens), context)
  ]
  nats = np.zeros(len(documents), np.float64)
  done, pending = 0, None
  score = build_scorer(functional)

  def collect(members: list[Window], nats_BT: Array):
    sums = multihost.whole(nats_BT).astype(np.float64).sum(axis=1)
    sums = sums[: len(members)]
    np.add.at(nats, [window.document for window in members], sums)
    on_progress(done, len(cut))

  for num_rows, width, members in batches(cut, context):
    batch = window_batch(documents, members, num_rows, width)
    # The devices compute this batch while the host fetches the one before it.
    ahead = members, score(params, state, batch)
    if pending:
      collect(*pending)
    pending, done = ahead, done + len(members)
  if pending:
    collect(*pending)
  for i in np.flatnonzero(~np.isfinite(nats)):
    raise ValueError(
      f'the score of document {i} is {nats[i]}, but must be finite: the '
      'parameters of this checkpoint are broken, use another step.'
    )
  spelt = [
    document.num_unknown + document.hidden_chars for document in documents
  ]
  return nats + np.array(spelt, np.float64) * math.log(NUM_SPELLING_SYMBOLS)


def totals(documents: Sequence[Document], nats: np.ndarray) -> dict[str, float]:
  """Sums over all documents, and their bits per character and per byte.

  Bits per character are all nats, end marks included, divided by ln 2 and by
  the number of code points without end marks. Bits per byte are divided by the
  number of bytes instead.

  Raises:
    ValueError: if there is no character to divide by.
  """
  chars = sum(document.chars for document in documents)
  if not chars:
    raise ValueError(
      'at least one character must be scored, got none: pass documents that '
      'are not empty.'
    )
  num_bytes = sum(document.bytes for document in documents)
  total = math.fsum(nats)
  return {
    'nats': total,
    'bits_per_char': total / math.log(2) / chars,
    'bits_per_byte': total / math.log(2) / num_bytes,
    'tokens': sum(num_scored(document) for document in documents),
    'chars': chars,
    'bytes': num_bytes,
    'documents': len(documents),
    'unknown_tokens': sum(document.num_unknown for document in documents),
  }


def num_scored(document: Document) -> int:
  """Number of tokens that are scored, the end mark included."""
  if document.weights is None:
    return len(document.tokens)
  return int(np.count_nonzero(document.weights))
