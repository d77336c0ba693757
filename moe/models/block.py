"""One transformer block: attention, then a dense or sparse layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe import axes, bounds
from moe.layers.attention import Attention, MaskSpec
from moe.layers.feed_forward import FeedForward
from moe.layers.latent_attention import LatentAttention
from moe.layers.moe_layer import LayerOutputs, MoE, TokenInfo
from moe.layers.norm import RMSNorm
from moe.layers.soft_moe import SoftMoE
from moe.models.anatomy import LayerAnatomy
from moe.types import Array, Layout, PyTree


class Block(nn.Module):
  """Pre-norm transformer block.

  Attributes:
    attention: makes the attention layer.
    feed_forward: makes the dense feed-forward layer.
    moe: makes the sparse feed-forward layer.
    is_sparse: whether this block has the sparse layer.
    dense_twin: whether a dense layer with the same active FLOPs replaces the
      sparse layer. The dense layer is as wide as all experts of one token
      together.
    dropout_rate: dropout of both residual branches in training.
    output_scale: factor of the initial values of the last matrix of each
      residual branch.
    residual_scale: factor of the output of each residual branch.
    router_scale: factor of the router's initial values.
    norm_epsilon: epsilon of both norms. Hugging Face: rms_norm_eps.
    layout: mesh axes by use.
    dtype: compute dtype.
  """

  attention: Callable[..., Attention | LatentAttention]
  feed_forward: Callable[..., FeedForward]
  moe: Callable[..., MoE | SoftMoE]
  is_sparse: bool = False
  dense_twin: bool = False
  dropout_rate: float = 0.0
  output_scale: float = 1.0
  residual_scale: float = 1.0
  router_scale: float = 1.0
  norm_epsilon: float = 1e-6
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    share = 'the share of activations that training sets to 0'
    bounds.within('DROPOUT_RATE', self.dropout_rate, share, least=0, below=1)
    bounds.within(
      'norm_epsilon', self.norm_epsilon, 'keeps roots above 0', above=0
    )
    super().__post_init__()

  @property
  def has_experts(self) -> bool:
    """Whether this block has experts; False if a dense twin replaces them."""
    return self.is_sparse and not self.dense_twin

  def anatomy(self) -> LayerAnatomy:
    """The sizes of this block."""
    # With parent=None these are not submodules; only their sizes are read.
    attention = self.attention(parent=None).anatomy()
    if not self.is_sparse:
      network = self.feed_forward(parent=None).anatomy()
      return LayerAnatomy(attention, feed_forward=network)
    experts = self.moe(parent=None).anatomy()
    if self.has_experts:
      return LayerAnatomy(attention, experts=experts)
    twin = experts.dense_twin()
    return LayerAnatomy(attention, feed_forward=twin, twin_of=experts)

  def layers(self) -> tuple[nn.Module, nn.Module]:
    """(attention, dense or sparse layer) as modules outside of a model."""
    attention = self.attention(dtype=self.dtype, parent=None)
    if self.has_experts:
      return attention, self.moe(dtype=self.dtype, parent=None)
    return attention, self._dense(parent=None)

  def update_state(self, state: PyTree) -> PyTree:
    """Returns this block's state after a step."""
    moe = self.moe(parent=None)
    return {'moe': moe.update_state(state['moe'])}

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    mask: MaskSpec,
    info: TokenInfo,
    cache: tuple[Array, Array] | None,
    train: bool,
  ) -> tuple[Array, tuple[Array, Array] | Array | None, LayerOutputs]:
    """Returns ([B, T, D], what attention keeps, losses and metrics).

    Attention keeps the updated cache or its weights, see `Attention`.
    """
    norm = lambda name: RMSNorm(
      axes.EMBED, self.norm_epsilon, self.dtype, name=name
    )
    dropout = lambda name: nn.Dropout(
      self.dropout_rate, deterministic=not train, name=name
    )
    constrain = lambda x: nn.with_logical_constraint(
      x, (axes.BATCH, axes.LENGTH, None)
    )
    attention = self.attention(
      layout=self.layout,
      dtype=self.dtype,
      output_scale=self.output_scale,
      name='attention',
    )
    y_BTD, kept = attention(norm('attention_norm')(x_BTD), mask, cache)
    y_BTD = self._scaled(y_BTD)
    x_BTD = constrain(x_BTD + dropout('attention_dropout')(y_BTD))
    x_BTD = checkpoint_name(x_BTD, 'attention_residual')
    y_BTD = norm('feed_forward_norm')(x_BTD)
    outputs = LayerOutputs({}, {})
    if self.has_experts:
      moe = self.moe(
        layout=self.layout,
        dtype=self.dtype,
        output_scale=self.output_scale,
        router_scale=self.router_scale,
        name='moe',
      )
      y_BTD, outputs = moe(y_BTD, info, train)
    else:
      y_BTD = self._dense(name='feed_forward')(y_BTD)
    y_BTD = self._scaled(y_BTD)
    x_BTD = constrain(x_BTD + dropout('feed_forward_dropout')(y_BTD))
    return x_BTD, kept, outputs

  def _scaled(self, y_BTD: Array) -> Array:
    """Multiplies the output of a residual branch by `residual_scale`."""
    if self.residual_scale == 1:
      return y_BTD
    return y_BTD * jnp.asarray(self.residual_scale, y_BTD.dtype)

  def _dense(self, **place: Any) -> FeedForward:
    """Makes the dense layer; `place` is its flax name or its parent."""
    options = {'dtype': self.dtype, 'output_scale': self.output_scale, **place}
    if not self.is_sparse:
      return self.feed_forward(**options)
    twin = self.moe(parent=None).anatomy().dense_twin()
    return FeedForward(twin.width, twin.activation, **options)
