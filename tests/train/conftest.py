"""The toy objective and a tiny sparse model, for the tests of this folder."""

import functools

import pytest

from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.stack import Stack
from tests.train import toy as toy_lib


@pytest.fixture(scope='session')
def toy():
  """An objective that compiles fast."""
  return toy_lib.make_objective()


@pytest.fixture(scope='session')
def make_batch():
  """A function (seed, B, T, V) -> batch of NumPy arrays without padding."""
  return toy_lib.make_batch


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
