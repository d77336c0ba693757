"""Token embedding and the output head."""

import flax.linen as nn
import jax.numpy as jnp

from moe import axes
from moe.layers.product import einsum
from moe.types import Array


class Embedding(nn.Module):
  """A table of token vectors, read by id.

  Attributes:
    vocab_size: rows of the table.
    d_model: width.
    scale: factor of the vectors; None for sqrt(D).
    dtype: dtype of the result; the table is float32.
  """

  vocab_size: int
  d_model: int
  scale: float | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens_BT: Array) -> Array:
    """Vectors [B, T, D]; by default features have unit variance at first."""
    # The variance 1/D suits the table as an output head; the factor sqrt(D)
    # brings the vectors back to unit scale (as in Gemma).
    scale = self.d_model**0.5 if self.scale is None else self.scale
    init = nn.with_logical_partitioning(
      nn.initializers.normal(self.d_model**-0.5), (axes.VOCAB, axes.EMBED)
    )
    shape = (self.vocab_size, self.d_model)
    table_VD = self.param('table', init, shape, jnp.float32)
    x_BTD = table_VD.astype(self.dtype)[tokens_BT]
    return x_BTD * jnp.asarray(scale, self.dtype)


class ExtraEmbedding(nn.Module):
  """A table of vectors for a further integer of each token.

  For example, the integer is the row of an image code in its picture.

  Attributes:
    size: rows of the table.
    d_model: width.
    dtype: dtype of the result; the table is float32.
  """

  size: int
  d_model: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, values_BT: Array) -> Array:
    """Vectors [B, T, D]; at first, features have about unit variance.

    A value outside the table gives NaN, so that a run ends with an error.
    """
    init = nn.with_logical_partitioning(
      nn.initializers.normal(1.0), (None, axes.EMBED)
    )
    table_VD = self.param('table', init, (self.size, self.d_model), jnp.float32)
    rows = jnp.asarray(table_VD, self.dtype).at[values_BT]
    return rows.get(
      mode='fill', fill_value=jnp.nan, wrap_negative_indices=False
    )


class Patches(nn.Module):
  """A linear map of the pixels of a patch to the vector of a token.

  This is the whole encoder of pictures in Fuyu (Bavishi et al. 2023,
  https://www.adept.ai/blog/fuyu-8b).

  Attributes:
    d_model: D.
    dtype: dtype of the result.
  """

  d_model: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, patches_BTN: Array) -> Array:
    """Vectors [B, T, D]; 0 for a token without a patch.

    Args:
      patches_BTN: uint8 pixel values from 1 to 255; 0 for a token without a
        patch.
    """
    has_patch_BT1 = jnp.max(patches_BTN, axis=-1, keepdims=True) > 0
    # White is 1 and black is -1.
    values_BTN = (patches_BTN.astype(jnp.float32) - 128.0) / 127.0
    x_BTD = nn.Dense(
      self.d_model,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), (None, axes.EMBED)
      ),
      name='linear',
    )(values_BTN.astype(self.dtype))
    return jnp.where(has_patch_BT1, x_BTD, 0)


class OutputHead(nn.Module):
  """The output matrix of a model whose embeddings are not tied.

  Attributes:
    vocab_size: V, rows of the matrix.
    d_model: D, columns of the matrix.
  """

  vocab_size: int
  d_model: int

  @nn.compact
  def __call__(self) -> Array:
    """The matrix as [V, D], float32."""
    init = nn.with_logical_partitioning(
      nn.initializers.normal(self.d_model**-0.5), (axes.VOCAB, axes.EMBED)
    )
    return self.param(
      'table', init, (self.vocab_size, self.d_model), jnp.float32
    )


def logits(hidden: Array, table_VD: Array) -> Array:
  """Float32 logits [..., V] of hidden states [..., D] in any dtype."""
  if hidden.dtype == jnp.float32:
    lead = 'ABCEFGHI'[: hidden.ndim - 1]
    return einsum(f'{lead}D,VD->{lead}V', hidden, table_VD.astype(hidden.dtype))
  return jnp.einsum(
    '...D,VD->...V',
    hidden,
    table_VD.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
