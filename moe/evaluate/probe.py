"""Trains a small network to read labels out of features."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.types import Array, PyTree

HIDDEN = 64
_BATCH, _STEPS, _LEARNING_RATE, _WEIGHT_DECAY = 512, 2000, 2e-3, 0.1


class Probe(NamedTuple):
  """A trained network with one hidden layer.

  Attributes:
    params: its parameters.
    mean: [D], mean of the training features.
    scale: [D], their standard deviation plus 1e-5.
  """

  params: PyTree
  mean: np.ndarray
  scale: np.ndarray

  def labels(self, features: np.ndarray) -> np.ndarray:
    """The most probable label of each row of features [N, D]; int [N]."""
    scaled = (features - self.mean) / self.scale
    return np.asarray(_logits(self.params, scaled).argmax(axis=-1))


def train(
  features: np.ndarray, labels: np.ndarray, num_labels: int, seed: int = 0
) -> Probe:
  """Trains a probe by cross entropy.

  Args:
    features: float [N, D].
    labels: int [N], from 0.
    num_labels: number of different labels.
    seed: seed of the initial values and of the draws of rows.
  """
  features = np.asarray(features, np.float32)
  mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-5
  scaled = (features - mean) / scale
  rng = np.random.default_rng(seed)
  sizes = features.shape[1], HIDDEN, num_labels
  params = [
    {
      'kernel': rng.normal(0, d_in**-0.5, (d_in, d_out)).astype(np.float32),
      'bias': np.zeros(d_out, np.float32),
    }
    for d_in, d_out in zip(sizes, sizes[1:], strict=False)
  ]
  rate = optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS)
  optimizer = optax.adamw(rate, weight_decay=_WEIGHT_DECAY)
  state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, x, y):
    def loss_fn(params):
      return optax.softmax_cross_entropy_with_integer_labels(
        _logits(params, x), y
      ).mean()

    gradients = jax.grad(loss_fn)(params)
    # optax mixes dtypes, which would be an error under strict promotion.
    with jax.numpy_dtype_promotion('standard'):
      updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(_STEPS):
    rows = rng.integers(len(labels), size=_BATCH)
    params, state = step(params, state, scaled[rows], labels[rows])
  return Probe(jax.device_get(params), mean, scale)


def _logits(params: PyTree, features: Array) -> Array:
  hidden, last = params
  x = jax.nn.relu(features @ hidden['kernel'] + hidden['bias'])
  return jnp.dot(x, last['kernel']) + last['bias']
