"""The folding block, which refines residues and pairs, and stacks of blocks."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.linear import LayerNorm, Linear
from moe.layers.pairs import (
  GatedAttention,
  PairTransition,
  SequenceToPair,
  TriangleAttention,
  TriangleMultiplication,
)
from moe.types import Array


class FoldingBlock(nn.Module):
  """Refines residues, by attention with a bias from pairs; then refines pairs.

  The block follows ESMFold, Lin et al. (2023),
  https://doi.org/10.1126/science.ade2574. The last matrix of every residual
  branch is 0 at first, so a new block changes nothing.

  Attributes:
    num_heads: heads of the attention of residues.
    head_dim: width of one of these heads.
    triangle_heads: heads of each of the two triangle attentions; 0 for a block
      without these attentions.
    triangle_head_dim: width of a head of triangle attention.
    transition_factor: width of a hidden layer divided by the width of its
      input.
    dropout_rate: dropout rate in training. For pairs, dropout sets a channel to
      0 in a whole row or column.
    dtype: compute dtype.
    train: whether this is training.
  """

  num_heads: int = 4
  head_dim: int = 32
  triangle_heads: int = 0
  triangle_head_dim: int = 32
  transition_factor: int = 4
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32
  train: bool = False

  def __post_init__(self):
    at_least = bounds.at_least
    at_least(1, 'FOLDING_HEADS', self.num_heads, 'heads of residues')
    at_least(1, 'FOLDING_HEAD_DIM', self.head_dim, 'the width of a head')
    at_least(0, 'TRIANGLE_HEADS', self.triangle_heads, '0 for none')
    at_least(1, 'TRIANGLE_HEAD_DIM', self.triangle_head_dim, 'of a head')
    at_least(1, 'TRANSITION_FACTOR', self.transition_factor, 'a wider layer')
    share = 'the share of activations that training sets to 0'
    name = 'FOLDING_DROPOUT'
    bounds.within(name, self.dropout_rate, share, least=0, below=1)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, s_BID: Array, pair_BIJZ: Array, valid_BI: Array
  ) -> tuple[Array, Array]:
    """Returns the refined (residues [B, I, D], pairs [B, I, J, Z])."""
    Z, dtype = pair_BIJZ.shape[-1], self.dtype
    bias = Linear(
      (self.num_heads,), (axes.LATENT, axes.HEADS), dtype=dtype, name='bias'
    )(LayerNorm(axes.LATENT, dtype, name='bias_norm')(pair_BIJZ))
    attention = GatedAttention(
      self.num_heads, self.head_dim, dtype, name='attention'
    )
    x_BID = LayerNorm(axes.EMBED, dtype, name='attention_norm')(s_BID)
    s_BID += self._dropped(attention(x_BID, bias, valid_BI), 's_0')
    transition = PairTransition(
      self.transition_factor, axes.EMBED, dtype, name='transition'
    )
    s_BID += self._dropped(transition(s_BID), 's_1')
    pair_BIJZ += SequenceToPair(Z // 2, Z, dtype, name='to_pair')(s_BID)
    multiply = TriangleMultiplication(dtype=dtype, name='triangles')
    pair_BIJZ += self._dropped(multiply(pair_BIJZ, valid_BI), 'pair_0', (1,))
    for i, is_ending in enumerate((False, True) if self.triangle_heads else ()):
      attend = TriangleAttention(
        is_ending,
        self.triangle_heads,
        self.triangle_head_dim,
        dtype,
        name=f'triangle_attention_{i}',
      )
      pair_BIJZ += self._dropped(
        attend(pair_BIJZ, valid_BI), f'pair_{1 + i}', (1 + i,)
      )
    transition = PairTransition(
      self.transition_factor, axes.LATENT, dtype, name='pair_transition'
    )
    pair_BIJZ += transition(pair_BIJZ)
    rows = (axes.BATCH, axes.LENGTH, None, None)
    return s_BID, nn.with_logical_constraint(pair_BIJZ, rows)

  def _dropped(
    self, x: Array, name: str, shared: tuple[int, ...] = ()
  ) -> Array:
    """Applies dropout; elements along a `shared` dim are dropped together."""
    return nn.Dropout(
      self.dropout_rate,
      broadcast_dims=shared,
      deterministic=not self.train,
      name=f'dropout_{name}',
    )(x)


class _Step(nn.Module):
  """One iteration of the loop over blocks.

  Attributes:
    block: makes a block.
    dtype: compute dtype.
    train: whether this is training.
  """

  block: Callable[..., FoldingBlock]
  dtype: jnp.dtype
  train: bool

  @nn.compact
  def __call__(
    self, carry: tuple[Array, Array], valid_BI: Array
  ) -> tuple[tuple[Array, Array], None]:
    """Returns the carry and the output of `nn.scan`; the output is None."""
    block = self.block(dtype=self.dtype, train=self.train, name='block')
    return block(*carry, valid_BI), None


def stacked(
  block: Callable[..., FoldingBlock],
  num_blocks: int,
  is_rematerialised: bool,
  dtype: jnp.dtype,
  train: bool,
) -> nn.Module:
  """Makes a stack of blocks, as a scan over one block.

  Args:
    block: makes a block.
    num_blocks: number of blocks.
    is_rematerialised: whether the backward pass computes each block again.
    dtype: compute dtype.
    train: whether this is training.
  """
  step = nn.remat(_Step, prevent_cse=False) if is_rematerialised else _Step
  return nn.scan(
    step,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=nn.broadcast,
    length=num_blocks,
    metadata_params={nn.PARTITION_NAME: axes.LAYERS},
  )(block, dtype, train, name='blocks')
