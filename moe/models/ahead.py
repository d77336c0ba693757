"""The extra block that predicts the token after the next one."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from moe import axes
from moe.layers.attention import MaskSpec
from moe.layers.moe_layer import TokenInfo
from moe.layers.norm import RMSNorm
from moe.layers.product import einsum
from moe.models.block import Block
from moe.types import Array, Layout


class Ahead(nn.Module):
  """One more block, which reads the last hidden states and the next tokens.

  This is multi-token prediction with depth 1: DeepSeek-V3 (2024), section 2.2,
  https://arxiv.org/abs/2412.19437. The block shares the model's embedding and
  head. Unlike in the paper, the block is dense, so it adds nothing to the
  losses and statistics of routers. In a sparse model it has the same active
  FLOPs as a sparse block.

  Attributes:
    block: makes the block.
    is_sparse: whether the blocks of the model are sparse.
    policy: rematerialisation policy of the block; with None, all tensors of the
      block are kept for the backward pass.
    layout: mesh axes by use.
    dtype: compute dtype.
  """

  block: Callable[..., Block]
  is_sparse: bool
  policy: Callable | None
  layout: Layout
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    next_BTD: Array,
    mask: MaskSpec,
    info: TokenInfo,
    train: bool,
  ) -> Array:
    """Returns [B, T, D], from which the head predicts the token after the next.

    Args:
      x_BTD: activations after the model's last block.
      next_BTD: embeddings of the next tokens.
      mask: which tokens attend to which.
      info: what routers read about the tokens.
      train: whether this is training.
    """
    norm = lambda name: RMSNorm(axes.EMBED, dtype=self.dtype, name=name)
    both = norm('hidden_norm')(x_BTD), norm('next_norm')(next_BTD)
    D = x_BTD.shape[-1]
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
    w_join = self.param(
      'w_join',
      nn.with_logical_partitioning(init, (axes.EMBED, None)),
      (2 * D, D),
      jnp.float32,
    )
    joined = jnp.concatenate(both, axis=-1)
    y_BTD = einsum('BTC,CD->BTD', joined, w_join.astype(self.dtype))
    block = self.block(
      is_sparse=self.is_sparse,
      dense_twin=True,
      layout=self.layout,
      dtype=self.dtype,
      name='block',
    )
    run = lambda block, *inputs: block(*inputs, None, train)
    if self.policy:
      run = nn.remat(run, policy=self.policy)
    y_BTD, _, _ = run(block, y_BTD, mask, info)
    return norm('last_norm')(y_BTD)
