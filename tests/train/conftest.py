"""A toy objective and a tiny sparse model, for the tests of this folder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import axes
from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.stack import Stack
from moe.objectives import language
from moe.objectives.objective import Objective
from moe.types import TokenBatch

# This token makes the loss of the toy NaN.
POISON = 15


def _toy_init(key, batch_shapes):
  del batch_shapes
  params = {'w': jax.random.normal(key, (16, 8))}
  return params, {'seen': jnp.zeros(())}, {'w': (axes.VOCAB, axes.EMBED)}


def _toy_loss(params, state, batch, key, train):
  """Sums the squares of sum(w[token]) - target / 8; a key adds noise."""
  error = params['w'].astype(jnp.float32)[batch.tokens].sum(-1)
  error -= batch.targets.astype(jnp.float32) / 8
  if key is not None:
    # Noise comes from the bits of the key, since a random draw compiles slowly.
    error += (jax.random.key_data(key)[0] % 1000).astype(jnp.float32) / 1e4
  error = jnp.where(batch.tokens == POISON, jnp.nan, error)
  sums = {'cross_entropy': jnp.sum(batch.loss_weights * jnp.square(error))}
  if train:
    state = {'seen': state['seen'] + batch.loss_weights.sum()}
  return sums, state, {'error': (error.sum(), batch.loss_weights.sum())}


@pytest.fixture(scope='session')
def toy():
  """An objective that compiles fast: a table predicts a number per token.

  Its batches are 8 rows of 4 tokens.
  """
  return Objective(
    _toy_init,
    lambda: language.fields(8, 4),
    _toy_loss,
    lambda batch: {'cross_entropy': batch.loss_weights.sum()},
    {'cross_entropy': 1.0},
    language.BITS_PER_CHAR,
    unit='tokens',
    count=lambda batch: int(np.count_nonzero(batch.segment_ids)),
  )


@pytest.fixture(scope='session')
def make_batch():
  """A function (seed, B, T, V) -> batch of NumPy arrays without padding."""

  def make(seed, B=8, T=4, V=POISON):
    rng = np.random.RandomState(seed)
    zeros = np.zeros((B, T), np.int32)
    return TokenBatch(
      tokens=rng.randint(0, V, (B, T)).astype(np.int32),
      targets=rng.randint(0, V, (B, T)).astype(np.int32),
      loss_weights=np.ones((B, T), np.float32),
      segment_ids=zeros + 1,
      positions=zeros + np.arange(T, dtype=np.int32),
      block_ids=zeros,
      modality=zeros,
    )

  return make


@pytest.fixture(scope='session')
def sparse_model():
  """A decoder of one sparse block, with routing groups of 8 tokens."""
  block = functools.partial(
    Block,
    attention=functools.partial(
      Attention, num_heads=2, num_kv_heads=1, head_dim=8
    ),
    feed_forward=functools.partial(FeedForward, width=32),
    moe=functools.partial(MoE, num_experts=8, expert_d_ff=16, group_size=8),
  )
  stack = functools.partial(Stack, block=block, num_layers=1)
  return Decoder(stack, vocab_size=32, d_model=16)
