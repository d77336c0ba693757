"""The loss of each modality has a weight of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities.ids import IdSpace
from moe.objectives.language import language_model
from moe.objectives.modalities import by_modality
from moe.types import Layout, Outputs, TokenBatch

SPACE = IdSpace(128, image=4)
CODE = SPACE.begin('image')
BATCH = TokenBatch(
  tokens=np.zeros((1, 4), np.int32),
  # The targets are two of text with the weights 1 and 2, an image code, and
  # padding.
  targets=np.array([[3, 5, CODE + 1, 0]], np.int32),
  loss_weights=np.array([[1, 2, 1, 0]], np.float32),
  segment_ids=np.array([[1, 1, 1, 0]], np.int32),
  positions=np.zeros((1, 4), np.int32),
  block_ids=np.zeros((1, 4), np.int32),
  modality=np.zeros((1, 4), np.int32),
)


class Uniform:
  """A model that gives equal logits to all ids of a range."""

  layout, extras, ids = Layout(), (), SPACE
  init = update = None

  def apply(self, params, state, batch, rngs, train):
    hidden = jnp.zeros((*batch.tokens.shape, 1))
    return Outputs(hidden, state, None, {}, {})

  def head_of(self, params, section):
    return lambda hidden: jnp.zeros((*hidden.shape[:-1], SPACE.sizes[section]))


def test_the_loss_is_the_weighted_sum_of_the_means_of_the_modalities():
  made = by_modality(Uniform(), (1, 4), language_model, text=0.5, image=2.0)
  sums, _, _ = made.loss(None, {}, BATCH, jax.random.key(0), True)
  weights = made.weights(BATCH)
  # A target competes with the 128 ids of text, or with the 4 image codes.
  text, image = np.log(128), np.log(4)
  np.testing.assert_allclose(sums['cross_entropy_text'], 3 * text, rtol=1e-6)
  np.testing.assert_allclose(sums['cross_entropy_image'], image, rtol=1e-6)
  total = 3 * text + image
  np.testing.assert_allclose(sums['cross_entropy'], total, rtol=1e-6)
  assert weights['cross_entropy_text'] == 3
  assert weights['cross_entropy_image'] == 1
  assert 'cross_entropy_protein' not in sums
  total = sum(made.coefficients[n] * sums[n] / weights[n] for n in sums)
  # The mean loss of text has the weight 0.5, that of image codes the weight 2.
  np.testing.assert_allclose(total, 0.5 * text + 2 * image, rtol=1e-6)


def test_chunks_change_no_loss():
  whole, parts = (
    by_modality(
      Uniform(), (1, 4), functools.partial(language_model, num_chunks=n)
    ).loss(None, {}, BATCH, None, False)[0]
    for n in (1, 2)
  )
  for name, value in whole.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-6)


def test_a_model_with_one_softmax_is_refused():
  model = Uniform()
  model.ids = None
  with pytest.raises(ValueError, match='a softmax for each range'):
    by_modality(model, (1, 4), language_model)
