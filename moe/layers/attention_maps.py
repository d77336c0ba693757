"""Softmax attention with its weights, and these as features of pairs of tokens.

Rao et al. (2020), https://doi.org/10.1101/2020.12.15.422761, read contacts of
residues from the maps of a protein language model.
"""

import jax
import jax.numpy as jnp

from moe.types import Array


def attend(
  q_BTNH: Array,
  k_BSKH: Array,
  v_BSKH: Array,
  seen_BTS: Array,
  scale: float | Array | None = None,
) -> tuple[Array, Array]:
  """Softmax attention in plain XLA, and its weights.

  Scores and softmax are float32. N / K query heads share each key and value
  head (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245). The width H of
  values may differ from that of queries and keys.

  Args:
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    seen_BTS: bool, whether each query sees each key.
    scale: factor of the scores; the default is H**-0.5 of the queries.

  Returns:
    (result [B, T, N, H], weights [B, N, T, S]), both in the dtype of the
    values. The weights of a query and a head add up to 1.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  n = N // K
  scale = H**-0.5 if scale is None else scale
  q_BTNH = q_BTNH * jnp.asarray(scale, q_BTNH.dtype)
  # The query heads of one key head become u = T * n queries of that head.
  q_BuKH = q_BTNH.reshape(B, T, K, n, H).swapaxes(2, 3).reshape(B, T * n, K, H)
  scores_BKuS = jnp.einsum(
    'BuKH,BSKH->BKuS', q_BuKH, k_BSKH, preferred_element_type=jnp.float32
  )
  seen_B1TS = seen_BTS[:, None]
  seen_B1uS = jnp.repeat(seen_B1TS, n, axis=2) if n > 1 else seen_B1TS
  # -1e30 instead of -inf, since the softmax of a row with only -inf is NaN.
  scores_BKuS = jnp.where(seen_B1uS, scores_BKuS, -1e30)
  probs_BKuS = jax.nn.softmax(scores_BKuS, axis=-1).astype(v_BSKH.dtype)
  out_BuKH = jnp.einsum('BKuS,BSKH->BuKH', probs_BKuS, v_BSKH)
  out_BTnKH = out_BuKH.reshape(B, T, n, K, -1)
  maps_BKTnS = probs_BKuS.reshape(B, K, T, n, -1)
  return (
    out_BTnKH.swapaxes(2, 3).reshape(B, T, N, -1),
    maps_BKTnS.swapaxes(2, 3).reshape(B, N, T, -1),
  )


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
