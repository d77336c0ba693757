"""Two models for the tests of this folder: a tiny sparse one and a table."""

import functools

import jax
import jax.numpy as jnp
import pytest

from moe.infer import decode
from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.models.stack import Stack
from moe.types import Outputs

VOCAB_SIZE = 24


@pytest.fixture(scope='session')
def model():
  """(functional, params, state) of a model with a dense and a sparse block."""
  block = functools.partial(
    Block,
    attention=functools.partial(
      Attention, num_heads=4, num_kv_heads=2, head_dim=8
    ),
    feed_forward=functools.partial(FeedForward, width=32),
    moe=functools.partial(MoE, num_experts=4, expert_d_ff=16),
  )
  stack = functools.partial(
    Stack, block=block, num_layers=2, num_dense_prefix=1
  )
  functional = Functional(
    Decoder(stack, vocab_size=VOCAB_SIZE, d_model=16, tie_embeddings=False)
  )
  batch = decode.read_batch(
    jnp.zeros((2, 8), jnp.int32),
    jnp.full((2,), 8, jnp.int32),
    jnp.zeros((2,), jnp.int32),
  )
  init = jax.jit(lambda key: functional.init(key, batch)[:2])
  params, state = init(jax.random.key(1))
  # The weights are three times their initial values, so that the logits of
  # different places differ clearly.
  return functional, jax.tree.map(lambda x: 3 * x, params), state


class Bigram:
  """A model that reads only the last token; `params` is a table of logits."""

  def apply(self, params, state, batch, rngs, train, cache=None):
    hidden = jax.nn.one_hot(batch.tokens, len(params))
    cache = cache._replace(index=cache.index + batch.tokens.shape[1])
    return Outputs(hidden, state, cache, {}, {})

  def head(self, params, hidden, section=None):
    return hidden @ params

  def cache_shapes(self, batch_size, length):
    return [jax.ShapeDtypeStruct((batch_size, length, 1, 1), jnp.float32)]


@pytest.fixture(scope='session')
def bigram():
  """(functional, params, state) of a `Bigram`, which compiles fast."""
  params = jax.random.normal(jax.random.key(2), (VOCAB_SIZE, VOCAB_SIZE))
  return Bigram(), params, {}
