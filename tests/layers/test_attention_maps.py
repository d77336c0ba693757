"""Attention maps: weights that are returned, and their correction."""

import math

import jax
import numpy as np

from moe.layers import attention, attention_maps
from tests.models.factories import make_batch


def reference_maps(q_BTNH, k_BSKH, seen_BTS):
  """The softmax of one query and head after the other."""
  B, T, N, H = q_BTNH.shape
  n = N // k_BSKH.shape[2]
  maps = np.zeros((B, N, T, k_BSKH.shape[1]))
  for b, head, t in np.ndindex(B, N, T):
    keys = np.flatnonzero(seen_BTS[b, t])
    scores = k_BSKH[b, keys, head // n] @ q_BTNH[b, t, head] / math.sqrt(H)
    maps[b, head, t, keys] = np.exp(scores) / np.exp(scores).sum()
  return maps


def test_maps_are_the_weights_of_attention():
  random = np.random.RandomState(0)
  q_BTNH = random.randn(2, 5, 6, 4).astype('f4')
  k_BSKH, v_BSKH = random.randn(2, 2, 5, 2, 4).astype('f4')
  batch = make_batch([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]])
  mask = attention.mask_spec(batch, None)
  seen_BTS = np.asarray(attention.visible(mask))
  out, maps = jax.jit(attention_maps.attend)(q_BTNH, k_BSKH, v_BSKH, seen_BTS)
  expected = reference_maps(q_BTNH, k_BSKH, seen_BTS)
  np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)
  whole = jax.jit(attention.attend)(q_BTNH, k_BSKH, v_BSKH, mask)
  np.testing.assert_allclose(out, whole, rtol=1e-5, atol=1e-6)


def reference_correction(maps_LBNIJ, valid_BI):
  """The correction of one map and pair after the other, from real residues."""
  L, B, N, size, _ = maps_LBNIJ.shape
  found = np.zeros((B, size, size, L * N))
  for layer, b, head in np.ndindex(L, B, N):
    real = np.flatnonzero(valid_BI[b])
    one = maps_LBNIJ[layer, b, head][np.ix_(real, real)]
    both = one + one.T
    for i, row in enumerate(real):
      for j, column in enumerate(real):
        product = both[i].sum() * both[:, j].sum() / both.sum()
        found[b, row, column, layer * N + head] = both[i, j] - product
  return found


def test_the_correction_is_the_slow_one_and_skips_padding():
  maps = np.random.RandomState(0).rand(3, 2, 4, 6, 6).astype('f4')
  valid = np.arange(6) < np.array([[6], [4]])
  found = jax.jit(attention_maps.corrected)(maps, valid)
  expected = reference_correction(maps, valid)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert not np.any(found[1, 4:]) and not np.any(found[1, :, 4:])


def test_a_row_without_residues_has_no_maps():
  maps = np.random.RandomState(0).rand(1, 1, 2, 3, 3).astype('f4')
  found = attention_maps.corrected(maps, np.zeros((1, 3), bool))
  assert not np.any(found)
