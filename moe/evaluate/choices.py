"""Log-likelihoods of continuations, as lm-evaluation-harness measures them.

The harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness)
asks for the log-likelihood of a continuation after a context, and whether
greedy decoding would write it. The two functions that decide what is measured,
where the text is cut into tokens and how a long context is shortened, do as
its version 0.4.13 does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.evaluate import likelihood
from moe.evaluate.likelihood import Context, Document, Window
from moe.infer.decode import Functional
from moe.modalities.text import Vocabulary
from moe.train import loss
from moe.types import Array, PyTree, TokenBatch


class Request(NamedTuple):
  """A continuation whose likelihood after a context is wanted."""

  context: str
  continuation: str


class Answer(NamedTuple):
  """What a model says of a request.

  Attributes:
    nats: minus the log-likelihood of the continuation.
    is_greedy: whether each of its tokens is the likeliest one.
  """

  nats: float
  is_greedy: bool


def encode_pair(
  vocabulary: Vocabulary, context: str, continuation: str
) -> tuple[list[int], list[int]]:
  """The tokens of a context and of its continuation.

  Spaces at the end of the context belong to the continuation, because most
  vocabularies join a space with the word after it. The whole text is encoded
  at once; the continuation is what is left after as many tokens as the context
  alone has. An empty context has no token: the model reads only the start id.
  Where nothing is left, because a piece of the vocabulary holds the end of the
  context and all of the continuation, the harness fails; here both are then
  encoded alone.

  Raises:
    ValueError: if the continuation is empty.
  """
  stripped = context.rstrip()
  continuation = context[len(stripped) :] + continuation
  given = vocabulary.encode(stripped)
  whole = vocabulary.encode(stripped + continuation)
  scored = whole[len(given) :] or vocabulary.encode(continuation)
  if not scored:
    raise ValueError(
      'the continuation must hold some text, got none after the context'
      f' ...{stripped[-20:]!r}.'
    )
  return whole[: len(given)] if len(whole) > len(given) else given, scored


def request_document(vocabulary: Vocabulary, request: Request) -> Document:
  """A request as a document without an end mark, whose context is given."""
  given, scored = encode_pair(vocabulary, *request)
  weights = np.zeros(len(given) + len(scored), np.float32)
  weights[len(given) :] = 1
  text = request.continuation
  return Document(
    np.array([*given, *scored], np.int32),
    len(text),
    len(text.encode()),
    weights,
  )


def request_windows(
  number: int, document: Document, context: Context
) -> list[Window]:
  """The windows that score a continuation.

  A text that is longer than the context loses tokens on its left. Where the
  continuation alone is longer, which the harness refuses, it is read in windows
  like a long document.
  """
  size = len(document.tokens)
  first = size - int(np.count_nonzero(document.weights))
  if size - first <= context.length:
    return [Window(number, max(0, size - context.length), first, size)]
  cut = likelihood.windows(number, size, context)
  return [window for window in cut if window.end > first]


def rolling_windows(
  number: int, document: Document, context: Context
) -> list[Window]:
  """The windows of a whole text, as the harness rolls them over it.

  Each window scores what no window before it has scored. The last window also
  reads tokens before those that it scores, as many as fit in its length.
  """
  size, cut = len(document.tokens), []
  for first in range(0, size, context.length):
    end = min(size, first + context.length)
    cut.append(Window(number, max(0, end - context.length), first, end))
  return cut


def build_answerer(functional: Functional) -> Callable[..., Array]:
  """The jitted `answer(params, state, batch) -> (nats_BT, is_greedy_BT)`."""

  def measure(logits: Array, targets: Array) -> tuple[Array, Array]:
    nats = loss.token_nats(logits, targets)[0]
    return nats, jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets

  def answer(
    params: PyTree, state: PyTree, batch: TokenBatch
  ) -> tuple[Array, Array]:
    nats_BT, is_greedy_BT = likelihood.measure_tokens(
      functional, params, state, batch, measure
    )
    is_scored_BT = batch.loss_weights > 0
    return jnp.where(is_scored_BT, nats_BT, 0.0), is_greedy_BT | ~is_scored_BT

  return jax.jit(answer)


def answer_requests(
  functional: Functional,
  params: PyTree,
  state: PyTree,
  documents: Sequence[Document],
  context: Context,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
  windows: Callable[..., list[Window]] = request_windows,
) -> list[Answer]:
  """Answers requests, in batches of similar length on the mesh that is set.

  Args:
    functional: the model.
    params: parameters of the model.
    state: what the model carries but does not train.
    documents: requests, from `request_document`.
    context: how long a window may be, and how many a batch has.
    on_progress: called with (windows done, all windows) after each batch.
    windows: cuts a document; `rolling_windows` for texts without a context.

  Raises:
    ValueError: if the context cannot be used, or an answer is not finite.
  """
  likelihood.check_context(context)
  cut = [
    window
    for number, document in enumerate(documents)
    for window in windows(number, document, context)
  ]
  nats = np.zeros(len(documents), np.float64)
  is_greedy = np.ones(len(documents), bool)
  answer, done = build_answerer(functional), 0
  for num_rows, width, members in likelihood.batches(cut, context):
    batch = likelihood.window_batch(documents, members, num_rows, width)
    nats_BT, is_greedy_BT = answer(params, state, batch)
    rows = [window.document for window in members]
    sums = np.asarray(nats_BT, np.float64).sum(axis=1)
    np.add.at(nats, rows, sums[: len(rows)])
    whole = np.asarray(is_greedy_BT).all(axis=1)
    np.logical_and.at(is_greedy, rows, whole[: len(rows)])
    done += len(members)
    on_progress(done, len(cut))
  for number in np.flatnonzero(~np.isfinite(nats)):
    raise ValueError(
      f'the likelihood of request {number} must be finite, got'
      f' {nats[number]}: the parameters of this checkpoint are broken, use'
      ' another step.'
    )
  return [
    Answer(float(n), bool(g)) for n, g in zip(nats, is_greedy, strict=True)
  ]
