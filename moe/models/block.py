"""One transformer block: attention, then a dense or sparse feed-forward net."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe import axes
from moe.layers.attention import Attention, Description
from moe.layers.feed_forward import FeedForward
from moe.layers.latent_attention import LatentAttention
from moe.layers.moe_layer import LayerOutputs, MoE, TokenInfo
from moe.layers.norm import RMSNorm
from moe.types import Array, Layout


class Block(nn.Module):
  """Pre-norm transformer block.

  Attributes:
    attention: makes the attention layer.
    feed_forward: makes the dense feed-forward layer.
    moe: makes the sparse one.
    is_sparse: whether this block has the sparse one.
    dense_twin: whether a sparse block gets a dense layer of equal active FLOPs
      instead: as wide as all experts one token sees.
    dropout_rate: on both residual branches, in training.
    layout: mesh axes by use.
    dtype: compute dtype.
  """

  attention: Callable[..., Attention | LatentAttention]
  feed_forward: Callable[..., FeedForward]
  moe: Callable[..., MoE]
  is_sparse: bool = False
  dense_twin: bool = False
  dropout_rate: float = 0.0
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    description: Description,
    info: TokenInfo,
    cache: tuple[Array, Array] | None,
    train: bool,
  ) -> tuple[Array, tuple[Array, Array] | None, LayerOutputs]:
    """Returns ([B, T, D], updated cache, losses and metrics)."""
    norm = lambda name: RMSNorm(axes.EMBED, dtype=self.dtype, name=name)
    dropout = lambda name: nn.Dropout(
      self.dropout_rate, deterministic=not train, name=name
    )
    spread = lambda x: nn.with_logical_constraint(
      x, (axes.BATCH, axes.LENGTH, None)
    )
    attention = self.attention(
      layout=self.layout, dtype=self.dtype, name='attention'
    )
    y_BTD, cache = attention(norm('attention_norm')(x_BTD), description, cache)
    x_BTD = spread(x_BTD + dropout('attention_dropout')(y_BTD))
    x_BTD = checkpoint_name(x_BTD, 'attention_residual')
    y_BTD = norm('feed_forward_norm')(x_BTD)
    outputs = LayerOutputs({}, {})
    if self.is_sparse and not self.dense_twin:
      moe = self.moe(layout=self.layout, dtype=self.dtype, name='moe')
      y_BTD, outputs = moe(y_BTD, info, train)
    else:
      y_BTD = self._dense()(y_BTD)
    x_BTD = spread(x_BTD + dropout('feed_forward_dropout')(y_BTD))
    return x_BTD, cache, outputs

  def _dense(self) -> FeedForward:
    if not self.is_sparse:
      return self.feed_forward(dtype=self.dtype, name='feed_forward')
    # parent=None: an inert description to read the sizes from, not a submodule.
    moe = self.moe(parent=None)
    active = moe.make_router().mean_active(moe.num_experts)
    width = round(active * moe.expert_d_ff) + moe.shared_d_ff
    return FeedForward(width, moe.activation, self.dtype, name='feed_forward')
