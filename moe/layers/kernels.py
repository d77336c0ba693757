"""Attention kernels of accelerators: splash on TPUs, cuDNN on NVIDIA's GPUs.

Both compute the same as `attention.attend`, but hold no scores [T, S] in
memory. They serve a batch that attends to itself, and do not read a cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe.types import Array, Layout

# Largest side of a tile of scores, and number of lanes of a TPU. The side of a
# tile is a multiple of the lanes.
_TILE, _LANES = 512, 128


def platform() -> str | None:
  """Platform of the devices of the mesh in use; None without a mesh.

  The mesh decides, not the default backend: a program for a TPU may be compiled
  on another machine, and must then be the same program.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device is not None else None


def refusal(
  kernel: str, q_BTNH: Array, k_BSKH: Array, layout: Layout
) -> str | None:
  """Why the kernel of a platform cannot take these shapes; None if it can.

  Args:
    kernel: platform of the kernel, 'tpu' or 'gpu'.
    q_BTNH: queries, or their shape and dtype.
    k_BSKH: keys.
    layout: mesh axes by use.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  rows, columns = (
    layout.size(axes) for axes in (layout.batch_axes, layout.sequence_axes)
  )
  heads = layout.size(layout.tensor_axes)
  if B % rows or K % heads or N % heads:
    return (
      f'{B} sequences must be divisible by {rows} devices, and {N} query heads'
      f' and {K} key heads by {heads} devices'
    )
  if T % columns:
    return (
      f'{T} tokens must be divisible by the {columns} devices that share them'
    )
  if kernel == 'tpu' and (T // columns) % _LANES:
    return (
      f'the {T // columns} tokens of a device must be a multiple of {_LANES}'
    )
  if kernel == 'gpu' and (q_BTNH.dtype.itemsize != 2 or H % 8 or H > 128):
    return (
      'cuDNN needs bfloat16 and heads of at most 128 features, a multiple of 8,'
      f' not {q_BTNH.dtype} and {H}'
    )
  return None


def last_visible(segments_BT: Array, blocks_BT: Array) -> Array:
  """Place of the last key that each query sees: its own, or its block's end.

  A query sees a key if both have the same segment and the key's place is not
  after this place. The tokens of a block must be consecutive.
  """
  T = segments_BT.shape[1]
  place_BT = jax.lax.broadcasted_iota(jnp.int32, segments_BT.shape, 1)
  following = lambda a_BT: jnp.pad(a_BT[:, 1:], ((0, 0), (0, 1)))
  goes_on_BT = (blocks_BT != 0) & (blocks_BT == following(blocks_BT))
  goes_on_BT &= segments_BT == following(segments_BT)
  end_BT = jnp.where(goes_on_BT, T - 1, place_BT)
  return jax.lax.cummin(end_BT, axis=1, reverse=True)


def within_span(last_BT: Array, first: int | Array, span: int) -> Array:
  """Factor of all scores: NaN if any query sees keys beyond the span, else 1.

  The caller leaves out keys beyond the span. Without NaN, a query that needs
  such a key would get a wrong result.

  Args:
    last_BT: the result of `last_visible`.
    first: place of the first query.
    span: how far after its own place a query may see.
  """
  place_BT = first + jax.lax.broadcasted_iota(jnp.int32, last_BT.shape, 1)
  return jnp.where(jnp.any(last_BT - place_BT > span), jnp.nan, 1.0)


def tile(length: int) -> int:
  """The largest side of a tile for `length` tokens.

  It is a multiple of `_LANES`, is at most `_TILE`, and divides `length`.
  """
  return next(t for t in range(_TILE, 0, -_LANES) if length % t == 0)


def _tables(
  first: Array, num_queries: int, num_keys: int, span: int, by_keys: bool
) -> tuple[Array, Array]:
  """Which tiles of scores are computed, and which tile of data comes next.

  Args:
    first: int32 scalar, place of the first query in its sequence.
    num_queries: queries of this device.
    num_keys: keys of the whole sequence.
    span: how far after its own place a query may see.
    by_keys: whether the kernel loops over the queries of each tile of keys, as
      for the gradient of keys and values; if not, it loops over the keys of
      each tile of queries.

  Returns:
    (next tile, is computed), int32 [1, query tiles, key tiles].
  """
  bq, bk = tile(num_queries), tile(num_keys)
  shape = (num_queries // bq, num_keys // bk)
  i, j = (jax.lax.broadcasted_iota(jnp.int32, shape, d) for d in (0, 1))
  runs = first + (i + 1) * bq - 1 + span >= j * bk
  along, axis = (i, 0) if by_keys else (j, 1)
  # While it skips a tile, the kernel fetches the next tile that it needs. After
  # the last tile that it computes, it fetches nothing new.
  ahead = jax.lax.cummin(
    jnp.where(runs, along, shape[axis]), axis=axis, reverse=True
  )
  last = jnp.max(jnp.where(runs, along, 0), axis=axis, keepdims=True)
  return jnp.minimum(ahead, last)[None], runs.astype(jnp.int32)[None]


def _splash_local(
  q_BTNH: Array,
  k_BSKH: Array,
  v_BSKH: Array,
  segments: tuple[Array, Array],
  last_BT: Array,
  first: Array,
  span: int,
  name: str | None,
) -> Array:
  """Splash attention of one device's queries to all keys of its sequences."""
  # The import takes long, and only programs for TPUs and some tests need it.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as mask_info,
  )

  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  bq, bk = tile(T), tile(S)
  sizes = splash.BlockSizes(
    block_q=bq,
    block_kv=bk,
    block_q_dkv=bq,
    block_kv_dkv=bk,
    block_q_dq=bq,
    block_kv_dq=bk,
  )
  tables = functools.partial(_tables, first, T, S, span)

  def one(
    q_NTH: Array,
    k_KSH: Array,
    v_KSH: Array,
    q_segments_T: Array,
    k_segments_S: Array,
    last_T: Array,
  ) -> Array:
    def info(by_keys: bool) -> mask_info.MaskInfo:
      ahead, runs = tables(by_keys)
      return mask_info.MaskInfo(ahead, None, runs, None, last_T)

    kernel = splash.SplashAttentionKernel(
      info(False),
      info(False),
      info(True),
      block_sizes=sizes,
      is_mqa=False,
      save_residuals=False,
      mask_value=-1e30,
      attn_logits_soft_cap=None,
      residual_checkpoint_name=name,
      mask_function=jnp.greater_equal,
      interpret=platform() != 'tpu',
    )
    ids = splash.SegmentIds(q_segments_T, k_segments_S)
    return kernel(q_NTH, k_KSH, v_KSH, ids)

  heads_first = lambda a: a.swapaxes(1, 2)
  out_BNTH = jax.vmap(one)(
    heads_first(q_BTNH),
    heads_first(k_BSKH),
    heads_first(v_BSKH),
    *segments,
    last_BT,
  )
  return heads_first(out_BNTH)


def splash(
  q_BTNH: Array,
  k_BSKH: Array,
  v_BSKH: Array,
  segments_BT: Array,
  blocks_BT: Array,
  layout: Layout,
  longest_block: int,
  name: str | None = None,
) -> Array:
  """Attention of a batch to itself by a TPU kernel.

  The kernel is splash attention of jax.experimental.pallas; other platforms
  interpret it. Its causal mask compares a key with the last place that the
  query sees, instead of the query's own place. So blocks only add the cost of
  the tiles right of the diagonal.

  Args:
    q_BTNH: queries.
    k_BSKH: keys, S = T.
    v_BSKH: values, whose heads may have another width.
    segments_BT: int32.
    blocks_BT: int32; tokens of a block are consecutive.
    layout: mesh axes by use, which divide rows, heads and queries.
    longest_block: tokens of the longest block. The place that predicts its
      first token also joins it, so a query sees at most this many later keys.
      A longer block makes the rows of its device NaN, since the tiles that it
      needs are not computed.
    name: name of the result, for remat policies.

  Returns:
    [B, T, N, H of the values], in the dtype of the queries.
  """
  T, H = q_BTNH.shape[1], q_BTNH.shape[-1]

  def local(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments_BT: Array,
    segments_BS: Array,
    last_BT: Array,
    first_1: Array,
  ) -> Array:
    scale = H**-0.5 * within_span(last_BT, first_1[0], longest_block)
    return _splash_local(
      q_BTNH * scale.astype(q_BTNH.dtype),
      k_BSKH,
      v_BSKH,
      (segments_BT, segments_BS),
      last_BT,
      first_1[0],
      longest_block,
      name,
    )

  columns = layout.size(layout.sequence_axes)
  # Place of each device's first query. It is an argument that is divided over
  # the devices, since all of them run the same program.
  first = jnp.arange(columns, dtype=jnp.int32) * (T // columns)
  last_BT = last_visible(segments_BT, blocks_BT)
  operands = (q_BTNH, k_BSKH, v_BSKH, segments_BT, segments_BT, last_BT, first)
  if not layout.sizes:
    return local(*operands)
  spec = lambda *names: P(*(n or None for n in names))
  batch, sequence = layout.batch_axes, layout.sequence_axes
  queries = spec(batch, sequence, layout.tensor_axes)
  keys = spec(batch, (), layout.tensor_axes)
  row = spec(batch, sequence)
  return jax.shard_map(
    local,
    in_specs=(queries, keys, keys, row, spec(batch), row, spec(sequence)),
    out_specs=queries,
    check_vma=False,
  )(*operands)


def cudnn(
  q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, seen_BTS: Array, layout: Layout
) -> Array:
  """Attention by cuDNN on NVIDIA's GPUs, through `jax.nn`.

  cuDNN reads the mask as a bias, [B, T, S] in the dtype of the queries for all
  heads. The bias is in memory; scores and probabilities are not.

  Args:
    q_BTNH: queries, bfloat16.
    k_BSKH: keys.
    v_BSKH: values of the same width.
    seen_BTS: bool, whether each query sees each key.
    layout: mesh axes by use, which divide rows, heads and queries.

  Returns:
    [B, T, N, H] in the dtype of the values.
  """

  def local(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, seen_BTS: Array
  ) -> Array:
    return jax.nn.dot_product_attention(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      mask=seen_BTS[:, None],
      scale=q_BTNH.shape[-1] ** -0.5,
      implementation='cudnn',
    )

  if not layout.sizes:
    return local(q_BTNH, k_BSKH, v_BSKH, seen_BTS)
  spec = lambda *names: P(*(n or None for n in names))
  batch, sequence = layout.batch_axes, layout.sequence_axes
  queries = spec(batch, sequence, layout.tensor_axes)
  keys = spec(batch, (), layout.tensor_axes)
  return jax.shard_map(
    local,
    in_specs=(queries, keys, keys, spec(batch, sequence)),
    out_specs=queries,
    check_vma=False,
  )(q_BTNH, k_BSKH, v_BSKH, seen_BTS)
