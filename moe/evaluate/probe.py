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
# Rows of which labels are predicted at once, to bound the memory.
_ROWS_AT_ONCE = 1024


class Probe(NamedTuple):
  """A trained network with one hidden layer.

  It reads the features of several rows at once. If a row has the states of
  several layers, it reads a mean of them with learned weights.

  Attributes:
    params: its parameters.
    mean: [L, D], mean of the training features.
    scale: [L, D], their standard deviation plus 1e-5.
  """

  params: PyTree
  mean: np.ndarray
  scale: np.ndarray

  def labels(
    self, features: np.ndarray, around: np.ndarray | None = None
  ) -> np.ndarray:
    """The most probable label of each row, int [M]; see `train`."""
    scaled, around = _prepared(features, around, self.mean, self.scale)
    found = [
      _logits(self.params, scaled[around[first : first + _ROWS_AT_ONCE]])
      for first in range(0, len(around), _ROWS_AT_ONCE)
    ]
    return np.concatenate(found).argmax(axis=-1)


def train(
  features: np.ndarray,
  labels: np.ndarray,
  num_labels: int,
  around: np.ndarray | None = None,
  seed: int = 0,
) -> Probe:
  """Trains a probe by cross entropy.

  Args:
    features: float [N, D], or [N, L, D] for the states of L layers.
    labels: int [M], from 0.
    num_labels: number of different labels.
    around: int [M, W], for each label the rows of features that the network
      reads to predict it; -1 stands for no row. None: label i belongs to row i.
    seed: seed of the initial values and of the draws of rows.
  """
  features = np.asarray(features, np.float32)
  L, D = _of_layers(features).shape[1:]
  mean = _of_layers(features).mean(axis=0)
  scale = _of_layers(features).std(axis=0) + 1e-5
  scaled, around = _prepared(features, around, mean, scale)
  rng = np.random.default_rng(seed)
  sizes = around.shape[1] * D, HIDDEN, num_labels
  params = [
    {
      'kernel': rng.normal(0, d_in**-0.5, (d_in, d_out)).astype(np.float32),
      'bias': np.zeros(d_out, np.float32),
    }
    for d_in, d_out in zip(sizes, sizes[1:], strict=False)
  ]
  params.append(np.zeros(L, np.float32))
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
    params, state = step(params, state, scaled[around[rows]], labels[rows])
  return Probe(jax.device_get(params), mean, scale)


def _of_layers(features: np.ndarray) -> np.ndarray:
  """Features as [N, L, D]."""
  return features[:, None] if features.ndim == 2 else features


def _prepared(
  features: np.ndarray,
  around: np.ndarray | None,
  mean: np.ndarray,
  scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """(scaled features [N + 1, L, D], `around`); the last row, -1, has zeros."""
  scaled = _of_layers(np.asarray(features, np.float32)) - mean
  scaled /= scale
  scaled = np.concatenate([scaled, np.zeros_like(scaled[:1])])
  if around is None:
    around = np.arange(len(features))[:, None]
  return scaled, around


def _logits(params: PyTree, x_BWLD: Array) -> Array:
  hidden, last, mix = params
  x_BWD = jnp.einsum('bwld,l->bwd', x_BWLD, jax.nn.softmax(mix))
  x = x_BWD.reshape(len(x_BWD), -1)
  x = jax.nn.relu(jnp.dot(x, hidden['kernel']) + hidden['bias'])
  return jnp.dot(x, last['kernel']) + last['bias']
