"""Tiny models, batches and parameters for tests."""

import functools

import jax
import numpy as np

from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.models.stack import Stack
from moe.types import TokenBatch

VOCAB_SIZE, D_MODEL = 12, 16
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 8
WIDTH, NUM_EXPERTS, EXPERT_D_FF, GROUP_SIZE = 24, 4, 10, 4


def make_block(moe=None, **options):
  """Returns a factory of blocks with these options."""
  return functools.partial(
    Block,
    attention=functools.partial(
      Attention,
      num_heads=NUM_HEADS,
      num_kv_heads=NUM_KV_HEADS,
      head_dim=HEAD_DIM,
    ),
    feed_forward=functools.partial(FeedForward, width=WIDTH),
    moe=functools.partial(
      MoE,
      **dict(
        num_experts=NUM_EXPERTS,
        expert_d_ff=EXPERT_D_FF,
        group_size=GROUP_SIZE,
      )
      | (moe or {}),
    ),
    **options,
  )


def make_decoder(block=None, num_layers=2, decoder=None, **stack):
  """Makes a decoder, with options for its stack and for itself."""
  return Decoder(
    functools.partial(
      Stack, block=block or make_block(), num_layers=num_layers, **stack
    ),
    vocab_size=VOCAB_SIZE,
    d_model=D_MODEL,
    **decoder or {},
  )


def make_batch(segments, seed=0):
  """Makes a batch of random tokens with the given segment ids [B, T]."""
  segments = np.asarray(segments, np.int32)
  random = np.random.RandomState(seed)
  tokens, targets = random.randint(0, VOCAB_SIZE, (2, *segments.shape))
  # The position of a token is the number of earlier tokens in its segment.
  before_BTT = segments[:, None] == segments[:, :, None]
  positions = np.tril(before_BTT, -1).sum(axis=-1)
  zeros = np.zeros_like(segments)
  return TokenBatch(
    tokens.astype(np.int32),
    targets.astype(np.int32),
    (segments > 0).astype(np.float32),
    segments,
    positions.astype(np.int32),
    zeros,
    zeros,
  )


def make_params(module, batch):
  """Draws random parameters without compiling `init`, which takes seconds."""
  found = {}

  def init():
    params, _, found['axes'] = Functional(module).init(jax.random.key(0), batch)
    return params

  random = np.random.RandomState(1)

  def draw(shape):
    # These numbers are larger than initial parameters, so errors show more.
    return random.uniform(-0.6, 0.6, shape.shape).astype(shape.dtype)

  return jax.tree.map(draw, jax.eval_shape(init))
