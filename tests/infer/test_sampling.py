"""Distributions of drawn tokens, compared with hand-worked ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.infer import sampling
from moe.infer.sampling import Sampling

# Probabilities 1/2, 1/4, 1/8, 1/8 as logits, in an order that is not sorted.
PROBS = np.array([[0.25, 0.125, 0.5, 0.125]], np.float32)
LOGITS = jnp.log(PROBS)


def probs(settings, allowed=None, logits=LOGITS):
  if allowed is not None:
    allowed = jnp.array([allowed], bool)
  kept = sampling.next_token_logits(logits, settings, allowed)
  return np.asarray(jax.nn.softmax(kept, axis=-1))[0]


def test_defaults_leave_the_model_as_it_is():
  np.testing.assert_allclose(probs(Sampling()), PROBS[0], rtol=1e-6)


def test_temperature_half_squares_the_probabilities():
  # Temperature 1/2 squares the probabilities: 1/16, 1/64, 1/4, 1/64. Divided by
  # their sum 22/64 they are 4/22, 1/22, 16/22, 1/22.
  expected = np.array([4, 1, 16, 1]) / 22
  np.testing.assert_allclose(
    probs(Sampling(temperature=0.5)), expected, rtol=1e-5
  )


def test_temperature_zero_takes_the_likeliest_allowed_token():
  assert probs(Sampling(temperature=0)).tolist() == [0, 0, 1, 0]
  barred = probs(Sampling(temperature=0), [1, 1, 0, 1])
  assert barred.tolist() == [1, 0, 0, 0]


def test_a_tiny_temperature_is_no_different_from_zero():
  assert probs(Sampling(temperature=1e-38)).tolist() == [0, 0, 1, 0]


def test_top_k_keeps_exactly_k_of_equally_likely_tokens():
  # The tokens with 1/2, 1/4 and the first 1/8 stay; their sum is 7/8.
  expected = np.array([2, 1, 4, 0]) / 7
  np.testing.assert_allclose(probs(Sampling(top_k=3)), expected, rtol=1e-6)


def test_top_p_keeps_the_token_that_reaches_it_and_no_more():
  # The token with 1/2 alone reaches 0.5. To reach 0.51, the token with 1/4 is
  # needed, too.
  assert probs(Sampling(top_p=0.5)).tolist() == [0, 0, 1, 0]
  expected = np.array([1, 0, 2, 0]) / 3
  np.testing.assert_allclose(probs(Sampling(top_p=0.51)), expected, rtol=1e-6)


def test_top_p_counts_what_top_k_left():
  # top_k=2 leaves the tokens with 1/2 and 1/4. Their probabilities become 2/3
  # and 1/3. So the likelier token alone reaches 0.6; its 1/2 would not.
  assert probs(Sampling(top_k=2, top_p=0.6)).tolist() == [0, 0, 1, 0]


def test_a_barred_token_is_never_kept_however_likely():
  expected = np.array([1, 0.5, 0, 0.5]) / 2
  np.testing.assert_allclose(
    probs(Sampling(), [1, 1, 0, 1]), expected, rtol=1e-6
  )


def test_tokens_are_drawn_as_often_as_they_are_likely():
  # In 4000 draws, the count of a token with probability p has a standard
  # deviation of sqrt(4000 p (1 - p)), which is at most 32. Five standard
  # deviations are at most 160.
  key_B = jax.random.split(jax.random.key(0), 4000)
  logits = jnp.broadcast_to(LOGITS, (4000, 4))
  drawn = sampling.draw(key_B, logits, Sampling())
  counts = np.bincount(np.asarray(drawn), minlength=4)
  np.testing.assert_allclose(counts, 4000 * PROBS[0], atol=160)


def test_a_draw_does_not_depend_on_the_other_rows():
  key_B = jax.random.split(jax.random.key(0), 64)
  logits = jnp.broadcast_to(LOGITS, (64, 4))
  together = sampling.draw(key_B, logits, Sampling(top_p=0.9))
  alone = [
    int(sampling.draw(key_B[i : i + 1], LOGITS, Sampling(top_p=0.9))[0])
    for i in range(8)
  ]
  assert together[:8].tolist() == alone


@pytest.mark.parametrize(
  ('settings', 'named'),
  [
    ({'temperature': -1.0}, 'temperature=-1.0'),
    ({'temperature': float('nan')}, 'temperature=nan'),
    ({'top_k': -1}, 'top_k=-1'),
    ({'top_p': 0.0}, 'top_p=0.0'),
    ({'top_p': 1.5}, 'top_p=1.5'),
  ],
)
def test_settings_without_meaning_are_refused(settings, named):
  with pytest.raises(ValueError, match=named):
    Sampling(**settings)
