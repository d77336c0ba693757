"""Grouped-query attention; a compact `MaskSpec` replaces a [B, T, S] mask."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe import axes, bounds
from moe.layers import attention_maps, kernels
from moe.layers.anatomy import AttentionAnatomy
from moe.layers.norm import RMSNorm
from moe.layers.position import Rope, rotate
from moe.layers.product import einsum
from moe.types import Array, Cache, Layout, TokenBatch

KERNELS = ('auto', 'fused', 'xla')
# Attention without a fused kernel computes the queries in this many parts, and
# each part leaves out keys that its queries cannot see. The second number is
# the smallest number of queries in a part; shorter parts would not save time.
_PARTS, _SHORTEST_PART = 4, 64


class MaskSpec(NamedTuple):
  """The arrays from which the attention mask is computed.

  A query sees a key if both have the same segment and either the key does not
  come after the query, or both have the same non-zero block.

  Attributes:
    positions_BT: int32, for rotary embedding.
    query_segments_BT, query_blocks_BT: segment and block of each query.
    key_segments_BS, key_blocks_BS: segment and block of each key; without a
      cache the keys are the tokens of the batch.
    index: int32 scalar, place of the first query among the keys; None for 0.
  """

  positions_BT: Array
  query_segments_BT: Array
  query_blocks_BT: Array
  key_segments_BS: Array
  key_blocks_BS: Array
  index: Array | None


def mask_spec(batch: TokenBatch, cache: Cache | None) -> MaskSpec:
  """The mask of a batch; tokens of a cache come before those of the batch."""
  if cache is None:
    keys = batch.segment_ids, batch.block_ids
    index = None
  else:
    index = cache.index
    write = lambda old_BS, new_BT: jax.lax.dynamic_update_slice_in_dim(
      old_BS, new_BT.astype(old_BS.dtype), index, axis=1
    )
    keys = (
      write(cache.segment_ids, batch.segment_ids),
      write(cache.block_ids, batch.block_ids),
    )
  return MaskSpec(
    batch.positions, batch.segment_ids, batch.block_ids, *keys, index
  )


def visible(mask: MaskSpec) -> Array:
  """The full mask, bool [B, T, S]: whether each query sees each key."""
  d = mask
  T, S = d.query_segments_BT.shape[1], d.key_segments_BS.shape[1]
  first = jnp.zeros((), jnp.int32) if d.index is None else d.index
  query_T1 = (first + jnp.arange(T, dtype=jnp.int32))[:, None]
  causal_TS = jnp.arange(S, dtype=jnp.int32) <= query_T1
  query_block_BT1 = d.query_blocks_BT[:, :, None]
  block_BTS = query_block_BT1 == d.key_blocks_BS[:, None]
  block_BTS &= query_block_BT1 != 0
  segment_BTS = d.query_segments_BT[:, :, None] == d.key_segments_BS[:, None]
  return segment_BTS & (causal_TS | block_BTS)


def attend(
  q_BTNH: Array,
  k_BSKH: Array,
  v_BSKH: Array,
  mask: MaskSpec,
  scale: float | Array | None = None,
) -> Array:
  """Softmax attention in plain XLA, see `attention_maps.attend`.

  Returns:
    [B, T, N, H] in the dtype of the values.
  """
  seen_BTS = visible(mask)
  return attention_maps.attend(q_BTNH, k_BSKH, v_BSKH, seen_BTS, scale)[0]


def num_parts(length: int, layout: Layout) -> int:
  """Number of parts of the queries in plain XLA; 1 if they stay together."""
  is_whole = layout.size(layout.sequence_axes) == 1
  is_long = length % _PARTS == 0 and length // _PARTS >= _SHORTEST_PART
  return _PARTS if is_whole and is_long else 1


def attend_by_parts(
  q_BTNH: Array,
  k_BTKH: Array,
  v_BTKH: Array,
  mask: MaskSpec,
  parts: int,
  longest_block: int,
) -> Array:
  """Computes self-attention for one part of the queries after the other.

  A part leaves out the keys that come more than `longest_block` places after
  its last query.

  Args:
    q_BTNH: queries.
    k_BTKH: keys.
    v_BTKH: values.
    mask: which keys each query sees, without a cache; tokens of a block must be
      consecutive.
    parts: number of parts of the queries; divides T.
    longest_block: tokens of the longest block. The place that predicts its
      first token also joins it, so a query sees at most this many later keys.
      A longer block makes the result NaN, since the keys that it needs are
      left out.
  """
  d = mask
  T = q_BTNH.shape[1]
  last_BT = kernels.last_visible(d.query_segments_BT, d.query_blocks_BT)
  scale = q_BTNH.shape[-1] ** -0.5
  scale *= kernels.within_span(last_BT, 0, longest_block)
  outs = []
  for start in range(0, T, T // parts):
    end = start + T // parts
    reach = min(T, end + longest_block)
    part = MaskSpec(
      d.positions_BT[:, start:end],
      d.query_segments_BT[:, start:end],
      d.query_blocks_BT[:, start:end],
      d.key_segments_BS[:, :reach],
      d.key_blocks_BS[:, :reach],
      jnp.int32(start),
    )
    q, k, v = q_BTNH[:, start:end], k_BTKH[:, :reach], v_BTKH[:, :reach]
    outs.append(attend(q, k, v, part, scale))
  return jnp.concatenate(outs, axis=1)


def self_attend(
  q_BTNH: Array,
  k_BTKH: Array,
  v_BTKH: Array,
  mask: MaskSpec,
  layout: Layout,
  kernel: str = 'auto',
  longest_block: int = 0,
) -> Array:
  """Attention of a batch to itself by the kernel of the mesh's platform.

  TPUs use splash attention and GPUs cuDNN. Plain XLA serves CPUs, programs
  without a mesh, and shapes that a kernel cannot take (`kernels.refusal`).

  Args:
    q_BTNH: queries.
    k_BTKH: keys.
    v_BTKH: values.
    mask: which keys each query sees, without a cache.
    layout: mesh axes by use.
    kernel: 'auto' chooses as said above; 'fused' raises an error where 'auto'
      would use plain XLA on a mesh; 'xla' always uses plain XLA.
    longest_block: tokens of the longest block in the data. If a block is
      longer, the result has NaN: with splash, and with plain XLA if it computes
      the queries of a long sequence in several parts.

  Returns:
    [B, T, N, H of the values], named 'attention_out' for remat policies.

  Raises:
    ValueError: if `kernel` is unknown, or if it is 'fused', there is a mesh,
      and no kernel fits.
  """
  if kernel not in KERNELS:
    raise ValueError(
      f"ATTENTION_KERNEL='{kernel}' must be one of {KERNELS}: choose one."
    )
  platform = 'cpu' if kernel == 'xla' else kernels.platform()
  reason = f'there is none for the platform {platform}'
  if platform in ('tpu', 'gpu'):
    reason = kernels.refusal(platform, q_BTNH, k_BTKH, layout)
  if reason and platform and kernel == 'fused':
    raise ValueError(
      f"ATTENTION_KERNEL='fused' needs a kernel, but {reason}: change the"
      " sizes, or set ATTENTION_KERNEL='auto' for plain XLA here."
    )
  d = mask
  parts = num_parts(q_BTNH.shape[1], layout)
  if reason and parts > 1:
    out_BTNH = attend_by_parts(q_BTNH, k_BTKH, v_BTKH, d, parts, longest_block)
  elif reason:
    out_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, d)
  elif platform == 'gpu':
    out_BTNH = kernels.cudnn(q_BTNH, k_BTKH, v_BTKH, visible(d), layout)
  else:
    return kernels.splash(
      q_BTNH,
      k_BTKH,
      v_BTKH,
      d.query_segments_BT,
      d.query_blocks_BT,
      layout,
      longest_block,
      'attention_out',
    )
  return checkpoint_name(out_BTNH, 'attention_out')


def check_sizes(layer: nn.Module, names: Sequence[str]) -> None:
  """Raises ValueError for a wrong kernel or size of an attention layer.

  Args:
    layer: an attention layer with a `kernel` and a `longest_block`.
    names: fields of the layer that must be at least 1.
  """
  bounds.one_of('ATTENTION_KERNEL', layer.kernel, KERNELS)
  for name in names:
    value = getattr(layer, name)
    bounds.at_least(1, name.upper(), value, 'a size of attention')
  longest = layer.longest_block
  bounds.at_least(0, 'LONGEST_BLOCK', longest, 'a size of attention')


class Attention(nn.Module):
  """Grouped-query attention with rotary positions and query and key norms.

  The norms follow Henry et al. (2020), https://arxiv.org/abs/2010.04245, with a
  learned scale (ViT-22B, https://arxiv.org/abs/2302.05442).

  Attributes:
    num_heads: N.
    num_kv_heads: K; divides N.
    head_dim: H; `rope` must rotate an even number of features.
    use_qk_norm: whether queries and keys are normalised.
    rope: how positions rotate queries and keys.
    norm_epsilon: epsilon of the norms of queries and keys. Hugging Face:
      rms_norm_eps.
    kernel: kernel of attention without a cache, see `self_attend`.
    longest_block: tokens of the longest block in the data; 0 for causal data.
    layout: mesh axes by use.
    dtype: compute dtype; parameters are float32.
    output_scale: factor of the initial values of the last matrix.
    returns_maps: whether a call without a cache returns its attention weights.
      It then runs in plain XLA.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  use_qk_norm: bool = True
  rope: Rope = Rope()
  norm_epsilon: float = 1e-6
  kernel: str = 'auto'
  longest_block: int = 0
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32
  output_scale: float = 1.0
  returns_maps: bool = False

  def __post_init__(self):
    check_sizes(self, ('num_heads', 'num_kv_heads', 'head_dim'))
    bounds.within(
      'norm_epsilon', self.norm_epsilon, 'keeps roots above 0', above=0
    )
    super().__post_init__()

  def anatomy(self) -> AttentionAnatomy:
    """The sizes of this layer."""
    width = self.num_heads * self.head_dim
    return AttentionAnatomy(
      num_heads=self.num_heads,
      num_kv_heads=self.num_kv_heads,
      pair_width=width,
      features=2 * (self.num_heads + self.num_kv_heads) * self.head_dim,
      result_features=width,
      kernel=self.kernel,
    )

  def cache_shapes(
    self, batch_size: int, length: int
  ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of the cached keys and values."""
    shape = (batch_size, length, self.num_kv_heads, self.head_dim)
    entry = jax.ShapeDtypeStruct(shape, self.dtype)
    return entry, entry

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    mask: MaskSpec,
    cache: tuple[Array, Array] | None = None,
  ) -> tuple[Array, tuple[Array, Array] | Array | None]:
    """Attends to the batch; with a cache, to the cached tokens and the batch.

    Returns:
      ([B, T, D], updated (k_BSKH, v_BSKH)). Without a cache, the second result
      is the attention weights [B, N, T, S] or None, see `returns_maps`.

    Raises:
      ValueError: if num_kv_heads does not divide num_heads.
    """
    N, K, H = self.num_heads, self.num_kv_heads, self.head_dim
    if N % K:
      raise ValueError(
        f'NUM_HEADS={N} must be a multiple of NUM_KV_HEADS={K}: change one of'
        ' them.'
      )
    q_BTNH = self._project('query', x_BTD, N)
    k_BTKH = self._project('key', x_BTD, K)
    v_BTKH = self._project('value', x_BTD, K)
    if self.use_qk_norm:
      norm = lambda name: RMSNorm(
        axes.KV, self.norm_epsilon, self.dtype, name=name
      )
      q_BTNH = norm('query_norm')(q_BTNH)
      k_BTKH = norm('key_norm')(k_BTKH)
    q_BTNH = rotate(q_BTNH, mask.positions_BT, self.rope)
    k_BTKH = rotate(k_BTKH, mask.positions_BT, self.rope)
    if cache is None and self.returns_maps:
      seen_BTS = visible(mask)
      out_BTNH, kept = attention_maps.attend(q_BTNH, k_BTKH, v_BTKH, seen_BTS)
      out_BTNH = checkpoint_name(out_BTNH, 'attention_out')
      sharding = axes.BATCH, axes.HEADS, axes.LENGTH, None
      kept = nn.with_logical_constraint(kept, sharding)
    elif cache is None:
      options = self.layout, self.kernel, self.longest_block
      out_BTNH = self_attend(q_BTNH, k_BTKH, v_BTKH, mask, *options)
      kept = None
    else:
      write = lambda old_BSKH, new_BTKH: jax.lax.dynamic_update_slice_in_dim(
        old_BSKH, new_BTKH.astype(old_BSKH.dtype), mask.index, axis=1
      )
      kept = write(cache[0], k_BTKH), write(cache[1], v_BTKH)
      out_BTNH = attend(q_BTNH, *kept, mask)
    D = x_BTD.shape[-1]
    init = nn.initializers.variance_scaling(
      self.output_scale**2,
      'fan_in',
      'truncated_normal',
      in_axis=(0, 1),
      out_axis=2,
    )
    w_NHD = self.param(
      'out',
      nn.with_logical_partitioning(init, (axes.HEADS, axes.KV, axes.EMBED)),
      (N, H, D),
      jnp.float32,
    )
    y_BTD = einsum('BTNH,NHD->BTD', out_BTNH, w_NHD.astype(self.dtype))
    return y_BTD, kept

  def _project(self, name: str, x_BTD: Array, heads: int) -> Array:
    D, H = x_BTD.shape[-1], self.head_dim
    init = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'truncated_normal', in_axis=0, out_axis=(1, 2)
    )
    w_DNH = self.param(
      name,
      nn.with_logical_partitioning(init, (axes.EMBED, axes.HEADS, axes.KV)),
      (D, heads, H),
      jnp.float32,
    )
    y_BTNH = einsum('BTD,DNH->BTNH', x_BTD, w_DNH.astype(self.dtype))
    return nn.with_logical_constraint(
      y_BTNH, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.KV)
    )
