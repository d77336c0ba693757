"""Multi-head latent attention: keys and values from one narrow vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.anatomy import AttentionAnatomy
from moe.layers.attention import (
  MaskSpec,
  attend,
  check_sizes,
  self_attend,
)
from moe.layers.norm import RMSNorm
from moe.layers.position import Rope, rotate
from moe.layers.product import einsum
from moe.types import Array, Layout


class LatentAttention(nn.Module):
  """Attention that caches one latent vector and one rotary key per token.

  DeepSeek-V2 (2024), section 2.1, https://arxiv.org/abs/2405.04434. Queries,
  keys and values are computed from normalised latents of width Z. Positions
  have separate features: every query head has some, and one rotary key serves
  all heads. Unlike in the paper, two rotary features that are half a width
  apart form a pair. This only changes the order of features.

  Attributes:
    num_heads: N.
    query_rank: Z of the queries; with 0 they have no latent, as in
      DeepSeek-V2-Lite.
    kv_rank: Z of keys and values.
    content_dim: features of a query or key head without position.
    rope_dim: features with position; even.
    value_dim: features of a value head.
    rope: how positions rotate features, and a factor of the scores, see
      `Rope.latent_score_scale`.
    norm_epsilon: epsilon of the norms of latents. Hugging Face's code always
      uses 1e-6 here and ignores rms_norm_eps.
    kernel: kernel of attention without a cache, see `self_attend`.
    longest_block: tokens of the longest block in the data; 0 for causal data.
    layout: mesh axes by use.
    dtype: compute dtype; parameters are float32.
    output_scale: factor of the initial values of the last matrix.
  """

  num_heads: int
  query_rank: int
  kv_rank: int
  content_dim: int
  rope_dim: int
  value_dim: int
  rope: Rope = Rope()
  norm_epsilon: float = 1e-6
  kernel: str = 'auto'
  longest_block: int = 0
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32
  output_scale: float = 1.0

  def __post_init__(self):
    widths = ('content_dim', 'rope_dim', 'value_dim')
    check_sizes(self, ('num_heads', 'kv_rank', *widths))
    bounds.at_least(0, 'QUERY_RANK', self.query_rank, 'a size of attention')
    bounds.within(
      'norm_epsilon', self.norm_epsilon, 'keeps roots above 0', above=0
    )
    super().__post_init__()

  def anatomy(self) -> AttentionAnatomy:
    """The sizes of this layer; it has as many key heads as query heads."""
    per_head = self.content_dim + self.rope_dim + self.value_dim
    return AttentionAnatomy(
      num_heads=self.num_heads,
      num_kv_heads=self.num_heads,
      pair_width=self.num_heads * per_head // 2,
      features=2 * self.num_heads * per_head,
      result_features=self.num_heads * self.value_dim,
      kernel=self.kernel,
    )

  def cache_shapes(
    self, batch_size: int, length: int
  ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of the cached latents and rotary keys, one head each."""
    slots = (batch_size, length, 1)
    return (
      jax.ShapeDtypeStruct((*slots, self.kv_rank), self.dtype),
      jax.ShapeDtypeStruct((*slots, self.rope_dim), self.dtype),
    )

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    mask: MaskSpec,
    cache: tuple[Array, Array] | None = None,
  ) -> tuple[Array, tuple[Array, Array] | None]:
    """Attends to the batch; with a cache, to the cached tokens and the batch.

    Returns:
      ([B, T, D], updated (latent_BSKZ, rope_key_BSKH) with K = 1, or None).
    """
    D, N = x_BTD.shape[-1], self.num_heads
    q_BTNH, q_rope_BTNH = self._queries(x_BTD, mask)
    latent_BTKZ, rope_BTKH = self._latents(x_BTD, mask)
    up = lambda name, width: self._matrix(
      name, (self.kv_rank, N, width), (axes.LATENT, axes.HEADS, axes.KV)
    )
    w_key_ZNH = up('key_up', self.content_dim)
    w_value_ZNH = up('value_up', self.value_dim)
    if cache is None:
      latent_BTZ = latent_BTKZ[:, :, 0]
      k_BTNH = self._heads(latent_BTZ, w_key_ZNH)
      v_BTNH = self._heads(latent_BTZ, w_value_ZNH)
      shared_BTNH = jnp.broadcast_to(rope_BTKH, q_rope_BTNH.shape)
      keys = jnp.concatenate([k_BTNH, shared_BTNH], axis=-1)
      queries = jnp.concatenate([q_BTNH, q_rope_BTNH], axis=-1)
      out_BTNH = self_attend(
        queries,
        keys,
        v_BTNH,
        mask,
        self.layout,
        self.kernel,
        self.longest_block,
      )
    else:
      write = lambda old_BSKH, new_BTKH: jax.lax.dynamic_update_slice_in_dim(
        old_BSKH, new_BTKH.astype(old_BSKH.dtype), mask.index, axis=1
      )
      cache = write(cache[0], latent_BTKZ), write(cache[1], rope_BTKH)
      # q . (W c) = (W^T q) . c, so the latents themselves serve as the keys and
      # values of a single head, and no keys or values [B, S, N, H] are made.
      q_BTNZ = einsum('BTNH,ZNH->BTNZ', q_BTNH, w_key_ZNH)
      queries = jnp.concatenate([q_BTNZ, q_rope_BTNH], axis=-1)
      keys = jnp.concatenate(cache, axis=-1)
      scale = (self.content_dim + self.rope_dim) ** -0.5
      out_BTNZ = attend(queries, keys, cache[0], mask, scale)
      out_BTNH = einsum('BTNZ,ZNH->BTNH', out_BTNZ, w_value_ZNH)
    w_NHD = self._matrix(
      'out',
      (N, self.value_dim, D),
      (axes.HEADS, axes.KV, axes.EMBED),
      in_axis=(0, 1),
      scale=self.output_scale,
    )
    return einsum('BTNH,NHD->BTD', out_BTNH, w_NHD), cache

  def _queries(self, x_BTD: Array, mask: MaskSpec) -> tuple[Array, Array]:
    """Content and rotary queries of every head."""
    D, Z, H = x_BTD.shape[-1], self.query_rank, self.content_dim
    heads = self.num_heads, H + self.rope_dim
    if Z:
      w_DZ = self._matrix('query_down', (D, Z), (axes.EMBED, axes.LATENT))
      latent_BTZ = self._norm('query_norm')(einsum('BTD,DZ->BTZ', x_BTD, w_DZ))
      w_ZNH = self._matrix(
        'query_up', (Z, *heads), (axes.LATENT, axes.HEADS, axes.KV)
      )
    else:
      latent_BTZ = x_BTD
      w_ZNH = self._matrix(
        'query', (D, *heads), (axes.EMBED, axes.HEADS, axes.KV)
      )
    q_BTNH = self._heads(latent_BTZ, w_ZNH)
    scale = self.rope.latent_score_scale
    if scale != 1.0:
      q_BTNH *= jnp.asarray(scale, self.dtype)
    q_BTNH, rope_BTNH = jnp.split(q_BTNH, [H], axis=-1)
    return q_BTNH, rotate(rope_BTNH, mask.positions_BT, self.rope)

  def _latents(self, x_BTD: Array, mask: MaskSpec) -> tuple[Array, Array]:
    """The entries of a cache: normalised latents and shared rotary keys."""
    D, Z = x_BTD.shape[-1], self.kv_rank
    w_DZ = self._matrix(
      'kv_down', (D, Z + self.rope_dim), (axes.EMBED, axes.LATENT)
    )
    both_BTZ = einsum('BTD,DZ->BTZ', x_BTD, w_DZ)
    latent_BTZ, rope_BTH = jnp.split(both_BTZ, [Z], axis=-1)
    norm = self._norm('kv_norm')
    rope_BTKH = rotate(rope_BTH[:, :, None], mask.positions_BT, self.rope)
    return norm(latent_BTZ)[:, :, None], rope_BTKH

  def _norm(self, name: str) -> RMSNorm:
    return RMSNorm(axes.LATENT, self.norm_epsilon, self.dtype, name=name)

  def _heads(self, latent_BTZ: Array, w_ZNH: Array) -> Array:
    y_BTNH = einsum('BTZ,ZNH->BTNH', latent_BTZ, w_ZNH)
    return nn.with_logical_constraint(
      y_BTNH, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.KV)
    )

  def _matrix(
    self,
    name: str,
    shape: tuple[int, ...],
    logical: tuple[str, ...],
    in_axis: tuple[int, ...] = (0,),
    scale: float = 1.0,
  ) -> Array:
    out_axis = tuple(i for i in range(len(shape)) if i not in in_axis)
    init = nn.initializers.variance_scaling(
      scale**2, 'fan_in', 'truncated_normal', in_axis, out_axis
    )
    init = nn.with_logical_partitioning(init, logical)
    return self.param(name, init, shape, jnp.float32).astype(self.dtype)
