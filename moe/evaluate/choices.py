"""Log-likelihoods of continuations, as lm-evaluation-harness measures them.

The harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness)
asks for the log-likelihood of a continuation after a context, and whether
greedy decoding would write this continuation. Two functions decide what is
measured: `encode_pair` splits the tokens into context and continuation, and
`request_windows` shortens a long context. Both follow version 0.4.13 of the
harness.
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
from moe.parallel import multihost
from moe.train import loss
from moe.types import Array, PyTree, TokenBatch


class Request(NamedTuple):
  """A context and a continuation; the model gives the latter's likelihood."""

  context: str
  continuation: str


class Answer(NamedTuple):
  """The likelihood that a model gives to the continuation of a request.

  Attributes:
    nats: minus the log-likelihood of the continuation.
    is_greedy: whether each token of the continuation is the likeliest one.
  """

  nats: float
  is_greedy: bool


def encode_pair(
  vocabulary: Vocabulary, context: str, continuation: str
) -> tuple[list[int], list[int]]:
  """The tokens of a context and of its continuation.

  Spaces at the end of the context are moved to the continuation, because most
  vocabularies join a space with the word after it. Context and continuation are
  encoded as one text. If the context alone has n tokens, the first n tokens of
  this text are the context and the others are the continuation. An empty
  context has no token, so the model reads only the start id.

  If one piece of the vocabulary contains the end of the context and the whole
  continuation, no token remains for the continuation. The harness fails then;
  we encode context and continuation separately.

  Raises:
    ValueError: if the continuation has no token.
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
  """Makes a document from a request; only the continuation is scored.

  The document has no end mark.
  """
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
  """The windows that score the continuation of a request.

  If the text is longer than a window, its first tokens are cut off. If the
  continuation alone is longer than a window, the text is read in several
  windows like a long document. The harness refuses such a continuation.
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
  """The windows that score all tokens of a text, as the harness cuts them.

  Each window scores the tokens that follow the previous window. If the last
  window has fewer tokens to score, it also reads earlier tokens, as many as fit
  in its length.
  """
  size, cut = len(document.tokens), []
  for first in range(0, size, context.length):
    end = min(size, first + context.length)
    cut.append(Window(number, max(0, end - context.length), first, end))
  return cut


def build_answerer(functional: Functional) -> Callable[..., Array]:
  """Builds the jitted `answer(params, state, batch)`.

  It returns (nats_BT, is_greedy_BT).
  """

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
  """Answers requests on the current mesh, in batches of similar length.

  Args:
    functional: the model.
    params: parameters of the model.
    state: model state, such as router biases.
    documents: requests, from `request_document`.
    context: length of a window, and number of windows in a batch.
    on_progress: called with (windows done, all windows) after each batch.
    windows: cuts a document into windows; use `rolling_windows` to score all
      tokens of a text.

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
    sums = multihost.whole(nats_BT).astype(np.float64).sum(axis=1)
    np.add.at(nats, rows, sums[: len(rows)])
    whole = multihost.whole(is_greedy_BT).all(axis=1)
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
