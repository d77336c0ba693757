"""Likelihoods of continuations equal hand-worked ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.evaluate import choices
from moe.evaluate.choices import Request
from moe.evaluate.likelihood import Context, Document
from moe.types import Outputs

SIZE = 400


class Echo:
  """A model that repeats the last token with probability 1/2."""

  def apply(self, params, state, batch, rngs, train, cache=None):
    hidden = jax.nn.one_hot(batch.tokens, SIZE)
    return Outputs(hidden, state, cache, {}, {})

  def restrict(self, logits, targets):
    return logits

  def head(self, params, hidden, section=None):
    return jnp.log(jnp.where(hidden > 0, 1 / 2, 1 / (2 * (SIZE - 1))))


def request(given, scored):
  tokens = np.array([*given, *scored], np.int32)
  weights = np.array([0] * len(given) + [1] * len(scored), np.float32)
  return Document(tokens, len(scored), len(scored), weights)


def answers(documents, length=8, **kwargs):
  context = Context(length, length // 2, 2)
  return choices.answer_requests(Echo(), {}, {}, documents, context, **kwargs)


def test_a_space_at_the_end_of_a_context_belongs_to_the_continuation(
  vocabulary,
):
  pair = choices.encode_pair(vocabulary, 'the cat ', 'sat')
  assert pair == choices.encode_pair(vocabulary, 'the cat', ' sat')
  given, scored = pair
  assert vocabulary.decode(given) == 'the cat'
  assert vocabulary.decode(scored) == ' sat'


def test_the_whole_text_is_encoded_at_once(vocabulary):
  given, scored = choices.encode_pair(vocabulary, 'the cat', ' sat on')
  assert [*given, *scored] == vocabulary.encode('the cat sat on')
  assert given == vocabulary.encode('the cat')


def test_a_piece_over_the_boundary_is_cut_there(vocabulary):
  # 貓在桌上 is one piece of this vocabulary.
  assert len(vocabulary.encode('貓在桌上')) == 1
  given, scored = choices.encode_pair(vocabulary, '貓在', '桌上')
  assert vocabulary.decode(given) == '貓在'
  assert vocabulary.decode(scored) == '桌上'


def test_an_empty_continuation_is_refused(vocabulary):
  with pytest.raises(ValueError, match='must hold some text'):
    choices.encode_pair(vocabulary, 'the cat', '')


def test_only_the_continuation_costs_nats():
  # After token 5, token 5 has probability 1/2, and each of the 399 others has
  # 1 / (2 * 399).
  same, other = answers([request([3, 5], [5, 5]), request([3, 5], [5, 6])])
  assert same.nats == pytest.approx(2 * math.log(2))
  assert other.nats == pytest.approx(math.log(2) + math.log(2 * 399))
  assert (same.is_greedy, other.is_greedy) == (True, False)


def test_a_long_context_loses_its_left_end():
  # The context has 10 tokens, the continuation 2. The window has 8 tokens, so
  # it leaves out the first 4 tokens of the context.
  (window,) = choices.request_windows(
    0, request(range(3, 13), [13, 14]), Context(8, 4, 2)
  )
  assert window[1:] == (4, 10, 12)


def test_a_continuation_longer_than_the_context_is_scored_once():
  long = request([5, 5, 5], [5] * 20)
  (answer,) = answers([long])
  assert answer.nats == pytest.approx(20 * math.log(2))
  assert answer.is_greedy


def test_batches_of_other_lengths_give_the_same_answers():
  documents = [request([5] * n, [5, 7]) for n in (1, 3, 30, 90)]
  alone = [answers([document], 64)[0] for document in documents]
  nats = [answer.nats for answer in answers(documents, 64)]
  assert nats == pytest.approx([answer.nats for answer in alone])


def test_rolling_windows_score_every_token_once():
  windows = choices.rolling_windows(0, request([], range(21)), Context(8, 4, 2))
  # The last window has 5 new tokens and reads 3 earlier ones again.
  assert [w[1:] for w in windows] == [(0, 0, 8), (8, 8, 16), (13, 16, 21)]


def test_a_broken_model_is_refused():
  class Broken(Echo):
    def restrict(self, logits, targets):
      return logits

    def head(self, params, hidden, section=None):
      return jnp.full((*hidden.shape[:-1], SIZE), jnp.nan)

  with pytest.raises(ValueError, match='must be finite'):
    choices.answer_requests(
      Broken(), {}, {}, [request([3], [4])], Context(8, 4, 2)
    )


def test_a_request_counts_the_characters_of_its_continuation(vocabulary):
  found = choices.request_document(vocabulary, Request('貓在', '桌上'))
  assert (found.chars, found.bytes) == (2, 6)
  assert vocabulary.decode(found.tokens[found.weights > 0].tolist()) == '桌上'
