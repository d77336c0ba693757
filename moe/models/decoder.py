"""The decoder-only transformer."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from moe import axes
from moe.layers import bounds, embedding
from moe.layers.attention import describe
from moe.layers.moe_layer import TokenInfo
from moe.layers.norm import RMSNorm
from moe.models.anatomy import Anatomy
from moe.models.stack import Stack
from moe.types import Array, Cache, Layout, Outputs, PyTree, TokenBatch

DTYPES = ('bfloat16', 'float16', 'float32')


class Decoder(nn.Module):
  """Embedding, a stack of blocks, a last norm; the head is applied by the loss.

  Attributes:
    stack: makes the tower of blocks.
    vocab_size: V.
    d_model: D.
    tie_embeddings: whether the head uses the embedding table. Hugging Face:
      tie_word_embeddings.
    embedding_scale: what embeddings are multiplied with; by default the square
      root of D. Models of Hugging Face's formats have 1.
    norm_epsilon: of the last norm. Hugging Face: rms_norm_eps.
    layout: mesh axes by use.
    dtype: compute dtype, as a name such as 'bfloat16'.
  """

  stack: Callable[..., Stack]
  vocab_size: int
  d_model: int
  tie_embeddings: bool = True
  embedding_scale: float | None = None
  norm_epsilon: float = 1e-6
  layout: Layout = Layout()
  dtype: str = 'float32'

  def __post_init__(self):
    bounds.one_of('DTYPE', self.dtype, DTYPES)
    bounds.at_least(1, 'D_MODEL', self.d_model, 'the width of the model')
    bounds.at_least(
      1, 'VOCAB_SIZE', self.vocab_size, 'entries of the vocabulary'
    )
    super().__post_init__()

  def anatomy(self) -> Anatomy:
    """What this model is made of.

    Raises:
      ValueError: for the first size or choice of a part that is out of range.
    """
    stack = self.stack(parent=None)
    prefix, period = stack.anatomy()
    return Anatomy(
      d_model=self.d_model,
      vocab_size=self.vocab_size,
      is_tied=self.tie_embeddings,
      dtype=self.dtype,
      remat=stack.remat,
      prefix=prefix,
      period=period,
      num_periods=stack.num_periods(),
    )

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Shapes of `Cache.layers` for so many rows and slots."""
    stack = self.stack(parent=None, dtype=jnp.dtype(self.dtype))
    return stack.cache_shapes(batch_size, length)

  def update_state(self, state: PyTree) -> PyTree:
    """State after a step: each router acts on what the step's tokens showed.

    Args:
      state: of a model whose routers carry something.
    """
    return {'stack': self.stack(parent=None).update_state(state['stack'])}

  @nn.compact
  def __call__(
    self, batch: TokenBatch, cache: Cache | None = None, train: bool = False
  ) -> Outputs:
    """Hidden states of a batch."""
    dtype = jnp.dtype(self.dtype)
    x_BTD = embedding.Embedding(
      self.vocab_size,
      self.d_model,
      self.embedding_scale,
      dtype,
      name='embedding',
    )(batch.tokens)
    x_BTD = nn.with_logical_constraint(x_BTD, (axes.BATCH, axes.LENGTH, None))
    description = describe(batch, cache)
    info = TokenInfo(batch.tokens, batch.modality, batch.segment_ids > 0)
    stack = self.stack(layout=self.layout, dtype=dtype, name='stack')
    x_BTD, layers, losses, metrics = stack(
      x_BTD, description, info, None if cache is None else cache.layers, train
    )
    hidden = RMSNorm(axes.EMBED, self.norm_epsilon, dtype, name='last_norm')(
      x_BTD
    )
    if not self.tie_embeddings:
      embedding.OutputHead(self.vocab_size, self.d_model, name='output')()
    if cache is not None:
      cache = Cache(
        description.key_segments_BS,
        description.key_blocks_BS,
        cache.index + batch.tokens.shape[1],
        layers,
      )
    return Outputs(hidden, {}, cache, losses, metrics)

  def head(self, params: PyTree, hidden: Array) -> Array:
    """Float32 logits [..., V] of hidden states [..., D]."""
    name = 'embedding' if self.tie_embeddings else 'output'
    return embedding.logits(hidden, params[name]['table'])
