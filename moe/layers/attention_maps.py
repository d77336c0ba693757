"""Attention maps: attention weights as features of pairs of tokens.

Rao et al. (2020), https://doi.org/10.1101/2020.12.15.422761, read contacts of
residues from the maps of a protein language model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe import axes
from moe.types import Array


def attend(
  q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, seen_BTS: Array
) -> tuple[Array, Array]:
  """Softmax attention in plain XLA, which also returns its weights.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; K divides N.
    v_BSKH: values.
    seen_BTS: bool, whether each query sees each key.

  Returns:
    (result [B, T, N, H], weights [B, N, T, S]), both in the dtype of the
    values. The weights of a query and a head add up to 1.
  """
  n = q_BTNH.shape[2] // k_BSKH.shape[2]
  k_BSNH, v_BSNH = (jnp.repeat(x, n, axis=2) for x in (k_BSKH, v_BSKH))
  scale = jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
  scores_BNTS = jnp.einsum(
    'BTNH,BSNH->BNTS',
    q_BTNH * scale,
    k_BSNH,
    preferred_element_type=jnp.float32,
  )
  # -1e30 instead of -inf, since the softmax of a row with only -inf is NaN.
  scores_BNTS = jnp.where(seen_BTS[:, None], scores_BNTS, -1e30)
  maps_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(v_BSNH.dtype)
  maps_BNTS = nn.with_logical_constraint(
    maps_BNTS, (axes.BATCH, axes.HEADS, axes.LENGTH, None)
  )
  out_BTNH = jnp.einsum('BNTS,BSNH->BTNH', maps_BNTS, v_BSNH)
  return checkpoint_name(out_BTNH, 'attention_out'), maps_BNTS


def corrected(maps_LBNIJ: Array, valid_BI: Array) -> Array:
  """Symmetric maps without the part that rows and columns explain.

  A map is added to its transpose. Then the average product correction (Dunn et
  al. 2008, https://doi.org/10.1093/bioinformatics/btm604) subtracts, from each
  pair, the sum of its row times the sum of its column divided by the sum of the
  map.

  Args:
    maps_LBNIJ: attention weights of L layers and N heads.
    valid_BI: False for padding, which no sum counts.

  Returns:
    float32 [B, I, J, L * N]; 0 for pairs with padding.
  """
  is_pair_BIJ = valid_BI[:, :, None] & valid_BI[:, None]
  x = jnp.where(is_pair_BIJ[:, None], maps_LBNIJ.astype(jnp.float32), 0)
  x += jnp.swapaxes(x, -1, -2)
  rows = jnp.sum(x, axis=-1, keepdims=True)
  # The sum of a map without residues is 0.
  total = jnp.maximum(jnp.sum(rows, axis=-2, keepdims=True), 1e-6)
  x -= rows * jnp.swapaxes(rows, -1, -2) / total
  L, B, N, size, _ = x.shape
  return jnp.moveaxis(x, (0, 2), (3, 4)).reshape(B, size, size, L * N)
