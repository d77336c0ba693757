"""Every token is scored once, whatever the windows and batches are."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.evaluate import likelihood
from moe.evaluate.likelihood import Context, Document, Window
from moe.types import Outputs

EOS = 1
VOCAB_SIZE = 8


class Uniform:
  """A model in which all tokens are equally likely."""

  def apply(self, params, state, batch, rngs, train, cache=None):
    assert not train
    hidden = jnp.zeros((*batch.tokens.shape, 1))
    return Outputs(hidden, state, cache, {}, {})

  def restrict(self, logits, targets):
    return logits

  def head(self, params, hidden, section=None):
    return jnp.zeros((*hidden.shape[:-1], VOCAB_SIZE))


class Counting(Uniform):
  """A model in which token 3 has probability 1 / (c + 1) after c tokens.

  Token 4 has the rest. The model counts the tokens of the segment that it sees.
  So a wrong score shows that a window sees too few tokens, or another document.
  """

  def apply(self, params, state, batch, rngs, train, cache=None):
    same = batch.segment_ids[:, :, None] == batch.segment_ids[:, None]
    causal = jnp.tril(jnp.ones(same.shape[1:], bool))
    count = (same & causal).sum(-1).astype(jnp.float32)
    return Outputs(count[..., None], state, cache, {}, {})

  def head(self, params, hidden, section=None):
    prob = 1 / (hidden[..., 0] + 1)
    logits = jnp.full((*hidden.shape[:-1], VOCAB_SIZE), -1e9)
    logits = logits.at[..., 3].set(jnp.log(prob))
    return logits.at[..., 4].set(jnp.log1p(-prob))


class Echo(Uniform):
  """Repeats the token it reads with probability 1/2; each other has 1/14."""

  def apply(self, params, state, batch, rngs, train, cache=None):
    hidden = jax.nn.one_hot(batch.tokens, VOCAB_SIZE)
    return Outputs(hidden, state, cache, {}, {})

  def head(self, params, hidden, section=None):
    return jnp.log(jnp.where(hidden > 0, 1 / 2, 1 / 14))


class Broken(Uniform):
  """A model whose logits are NaN, as after a failed training."""

  def head(self, params, hidden, section=None):
    return jnp.full((*hidden.shape[:-1], VOCAB_SIZE), jnp.nan)


def document(tokens, **kwargs):
  return Document(
    np.array(tokens, np.int32), len(tokens), len(tokens), **kwargs
  )


def score(model, documents, length=16, stride=8, batch_size=2):
  context = Context(length, stride, batch_size)
  return likelihood.score_documents(model, {}, {}, documents, context)


def test_a_uniform_model_needs_ln_v_nats_per_token_end_mark_included():
  documents = [
    document([3, 4, EOS]),
    document([EOS]),
    document([5] * 50 + [EOS]),
  ]
  nats = score(Uniform(), documents)
  np.testing.assert_allclose(
    nats, np.array([3, 1, 51]) * math.log(8), rtol=1e-6
  )
  assert nats.dtype == np.float64


def test_the_first_token_is_predicted_from_the_start_id():
  # `Echo` gives the last token probability 1/2, and each other one 1/14.
  # The start id is 0, so the tokens 0 0 3 3 have probabilities 1/2, 1/2, 1/14,
  # 1/2.
  nats = score(Echo(), [document([0, 0, 3, 3])])
  np.testing.assert_allclose(nats, 3 * math.log(2) + math.log(14), rtol=1e-6)


def test_windows_overlap_by_length_minus_stride():
  assert likelihood.windows(5, 7, Context(4, 2, 1)) == [
    Window(5, 0, 0, 4),
    Window(5, 2, 4, 6),
    Window(5, 4, 6, 7),
  ]
  assert likelihood.windows(0, 4, Context(4, 2, 1)) == [Window(0, 0, 0, 4)]


def test_a_row_holds_one_window_and_padding_outside_of_segments():
  # The document is 3 4 5 6 and the end mark. The window predicts the tokens
  # [2, 4) again with weight 0, and scores only [4, 5), the end mark.
  batch = likelihood.window_batch(
    [document([3, 4, 5, 6, EOS])], [Window(0, 2, 4, 5)], num_rows=2, width=4
  )
  assert batch.tokens.tolist() == [[4, 5, 6, 0], [0] * 4]
  assert batch.targets.tolist() == [[5, 6, EOS, 0], [0] * 4]
  assert batch.loss_weights.tolist() == [[0, 0, 1, 0], [0] * 4]
  assert batch.segment_ids.tolist() == [[1, 1, 1, 0], [0] * 4]
  assert batch.positions.tolist() == [[0, 1, 2, 0], [0] * 4]


@pytest.mark.parametrize('stride', [1, 2, 3, 4])
@pytest.mark.parametrize('num_tokens', [1, 3, 4, 5, 8, 9, 30])
def test_every_token_is_scored_by_exactly_one_window(num_tokens, stride):
  context = Context(4, stride, 1)
  scored = [
    place
    for window in likelihood.windows(0, num_tokens, context)
    for place in range(window.first, window.end)
  ]
  assert scored == list(range(num_tokens))


def test_later_windows_see_the_context_they_reread():
  # Windows have length 4 and stride 2. The window [0, 4) scores four tokens,
  # after 1, 2, 3 and 4 tokens; [2, 6) scores two, after 3 and 4; [4, 7) scores
  # one, after 3. After c tokens, token 3 costs ln(c + 1) nats. So the costs are
  # the logarithms of 2, 3, 4, 5, then 4, 5, then 4.
  nats = score(Counting(), [document([3] * 7)], length=4, stride=2)
  np.testing.assert_allclose(
    nats, math.log(2 * 3 * 4 * 5 * 4 * 5 * 4), rtol=1e-6
  )


def test_a_later_window_begins_with_the_token_before_it():
  # `Echo` repeats the token that it reads with probability 1/2. Any other token
  # has 1/14. Windows have length 2 and stride 2. In [0, 2) the two tokens are
  # predicted from the start id and from a 3, which costs ln 14 + ln 2. In
  # [2, 3) the token is predicted from a 3, which costs ln 2. From the start id
  # it would cost ln 14.
  nats = score(Echo(), [document([3, 3, 3])], length=2, stride=2)
  np.testing.assert_allclose(nats, math.log(14 * 2 * 2), rtol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 3, 64])
def test_scores_do_not_depend_on_other_documents_or_the_batch_size(batch_size):
  documents = [document([3] * n + [4]) for n in (1, 5, 2, 40, 17, 16, 3, 9)]
  together = score(Counting(), documents, batch_size=batch_size)
  alone = [score(Counting(), [one])[0] for one in documents]
  np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_a_prompt_costs_nothing():
  weights = np.array([0, 0, 1, 1], np.uint8)
  prefixed = document([3, 3, 3, EOS], weights=weights)
  nats = score(Uniform(), [prefixed])
  np.testing.assert_allclose(nats, 2 * math.log(8), rtol=1e-6)
  assert likelihood.num_scored(prefixed) == 2


def test_unknown_tokens_are_charged_for_what_they_hide():
  # Two unknown tokens stand for three characters. To spell these takes five
  # symbols: three characters and an end symbol for each token. A symbol is one
  # of 1,114,112 code points or the end symbol.
  hiding = document([2, 3, 2, EOS], num_unknown=2, hidden_chars=3)
  nats = score(Uniform(), [hiding])
  expected = 4 * math.log(8) + 5 * math.log(1_114_113)
  np.testing.assert_allclose(nats, expected, rtol=1e-6)
  assert likelihood.totals([hiding], nats)['unknown_tokens'] == 2


def test_short_windows_share_wide_batches_only_when_they_are_few():
  context = Context(length=64, stride=32, batch_size=2)
  short = [Window(i, 0, 0, 9) for i in range(9)]
  long = [Window(9, 0, 0, 50), Window(10, 0, 0, 64)]
  # A batch holds 2 * 64 / 16 = 8 windows of width 16, so nine need a second
  # batch.
  shapes = [
    (rows, width, len(members))
    for rows, width, members in likelihood.batches([*short, *long], context)
  ]
  assert shapes == [(2, 64, 2), (8, 16, 8), (8, 16, 1)]
  shapes = [
    (rows, width, len(members))
    for rows, width, members in likelihood.batches([*short[:3], *long], context)
  ]
  assert shapes == [(2, 64, 2), (2, 64, 2), (2, 64, 1)]


def test_totals_follow_the_definition_of_bits_per_character():
  # The cost is 8 bits for 2 characters of 3 bytes each: 4 bits per character
  # and 8/6 per byte.
  documents = [Document(np.array([3, 4, EOS]), 2, 6)]
  assert likelihood.totals(documents, np.array([8 * math.log(2)])) == {
    'nats': pytest.approx(8 * math.log(2)),
    'bits_per_char': pytest.approx(4),
    'bits_per_byte': pytest.approx(8 / 6),
    'tokens': 3,
    'chars': 2,
    'bytes': 6,
    'documents': 1,
    'unknown_tokens': 0,
  }


def test_a_broken_model_gives_an_error_and_no_number():
  with pytest.raises(ValueError, match='document 0 is nan'):
    score(Broken(), [document([3, EOS])])


@pytest.mark.parametrize(
  ('context', 'message'),
  [
    (Context(0, 1, 1), 'at least 1'),
    (Context(8, 4, 0), 'at least 1'),
    (Context(8, 0, 1), 'stride must be from 1 to the sequence length 8, got 0'),
    (Context(8, 9, 1), 'got 9'),
  ],
)
def test_a_context_that_skips_tokens_is_refused(context, message):
  with pytest.raises(ValueError, match=message):
    likelihood.score_documents(Uniform(), {}, {}, [document([1])], context)


def test_models_that_compare_equal_keep_their_own_scores():
  @dataclasses.dataclass(frozen=True)
  class Configured(Uniform):
    """A model whose instances are all equal, like models that gin makes."""

    size: dataclasses.InitVar[int]

    def __post_init__(self, size):
      object.__setattr__(self, '_size', size)

    def restrict(self, logits, targets):
      return logits

    def head(self, params, hidden, section=None):
      return jnp.zeros((*hidden.shape[:-1], self._size))

  assert Configured(4) == Configured(16)
  (four,), (sixteen,) = (
    score(Configured(size), [document([3, EOS])]) for size in (4, 16)
  )
  assert four == pytest.approx(2 * math.log(4))
  assert sixteen == pytest.approx(2 * math.log(16))


def test_documents_without_any_text_are_refused():
  with pytest.raises(ValueError, match='at least one character'):
    likelihood.totals([Document(np.array([EOS]), 0, 0)], np.array([1.0]))
  with pytest.raises(ValueError, match='document 0 must hold'):
    score(Uniform(), [document([])])


def test_blocks_modality_and_extras_come_to_the_places_that_read_them():
  # The document is a block of two codes, a token of text and the end mark.
  document = Document(
    np.array([9, 8, 3, EOS]),
    1,
    1,
    np.array([0, 0, 1, 1]),
    block_ids=np.array([1, 1, 0, 0]),
    modality=np.array([1, 1, 0, 0]),
    extras={'row': np.array([5, 6, 0, 0], np.int32)},
  )
  batch = likelihood.window_batch([document], [Window(0, 0, 0, 4)], 1, 5)
  assert batch.block_ids.tolist() == [[1, 1, 1, 0, 0]]
  assert batch.modality.tolist() == [[0, 1, 1, 0, 0]]
  assert batch.extras['row'].tolist() == [[0, 5, 6, 0, 0]]
