"""Layers of the pair track of structure prediction, and its gated attention.

Jumper et al. (2021), https://doi.org/10.1038/s41586-021-03819-2, supplement
1.6: triangle multiplication (Algorithms 11 and 12), triangle attention (13 and
14) and transitions (15). `SequenceToPair` follows ESMFold, Lin et al. (2023),
https://doi.org/10.1126/science.ade2574. The letters are B chains, I and J
residues, N heads, H head width, D width of a residue, Z width of a pair, C
channels of triangle multiplication.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe import axes
from moe.layers.linear import LayerNorm, Linear
from moe.types import Array

OUTGOING, INCOMING = 'outgoing', 'incoming'
# Products of two edges of a triangle, summed over its third residue k.
_SUMS = {
  OUTGOING: 'CBIk,CBJk->CBIJ',
  INCOMING: 'CBkI,CBkJ->CBIJ',
}

# Largest number of scores that triangle attention holds at once on a device,
# unless one row of pairs has more. They take half a gigabyte.
MOST_SCORES = 2**27


class TriangleMultiplication(nn.Module):
  """Updates pair (i, j) from the other two edges of all triangles i, j, k.

  Unlike in the paper, both directions read the same pairs, and their results
  are added. With one direction, the layer is the paper's algorithm.

  Attributes:
    directions: `OUTGOING` multiplies the edges (i, k) and (j, k), `INCOMING`
      the edges (k, i) and (k, j).
    width: channels of the products; None for Z.
    dtype: compute dtype.
  """

  directions: Sequence[str] = (OUTGOING, INCOMING)
  width: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, pair_BIJZ: Array, valid_BI: Array) -> Array:
    """Computes the update [B, I, J, Z], which is added to the pairs."""
    width = self.width or pair_BIJZ.shape[-1]
    x = LayerNorm(axes.LATENT, self.dtype, name='norm')(pair_BIJZ)
    is_pair = valid_BI[:, :, None] & valid_BI[:, None]
    return sum(
      _Direction(_SUMS[name], width, self.dtype, name=name)(x, is_pair)
      for name in self.directions
    )


class _Direction(nn.Module):
  """One direction of triangle multiplication, after the norm of the pairs.

  Attributes:
    subscripts: the product of two factors.
    width: C.
    dtype: compute dtype.
  """

  subscripts: str
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BIJZ: Array, is_pair_BIJ: Array) -> Array:
    """Computes the update [B, I, J, Z]."""
    Z, C = x_BIJZ.shape[-1], self.width
    # The pairs are turned once, so that the product of factors turns nothing.
    x_ZBIJ = jnp.moveaxis(x_BIJZ, -1, 0)
    first = lambda name: Linear(
      (C,), (axes.LATENT, axes.MLP), dtype=self.dtype, is_first=True, name=name
    )(x_ZBIJ)
    one, two = (
      jnp.where(is_pair_BIJ, first(n) * jax.nn.sigmoid(first(f'{n}_gate')), 0)
      for n in ('one', 'two')
    )
    y = jnp.moveaxis(jnp.einsum(self.subscripts, one, two), 0, -1)
    y = LayerNorm(axes.LATENT, self.dtype, name='norm')(y)
    last = functools.partial(Linear, (Z,), dtype=self.dtype)
    gate = last((axes.LATENT, None), name='gate')(x_BIJZ)
    out = last((axes.MLP, axes.LATENT), 'zero', name='out')(y)
    return out * jax.nn.sigmoid(gate)


class GatedAttention(nn.Module):
  """Attention with a bias for each pair, and a gate on each result.

  Attributes:
    num_heads: N.
    head_dim: H.
    dtype: compute dtype; weights are float32.
  """

  num_heads: int
  head_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, bias: Array, valid: Array) -> Array:
    """Attends to the residues of the same row.

    Args:
      x: [..., I, D].
      bias: [..., I, J, N], added to the scores; leading dims may be 1.
      valid: bool [..., J], False for residues that no residue attends to.

    Returns:
      [..., I, D]. With the initial parameters it is 0.
    """
    N, H, D = self.num_heads, self.head_dim, x.shape[-1]
    every = Linear(
      (4, N, H),
      (axes.EMBED, None, axes.HEADS, axes.KV),
      dtype=self.dtype,
      name='projections',
    )(x)
    query, key, value, gate = jnp.moveaxis(every, -3, 0)
    attend = functools.partial(_attend, bias, valid)
    parts = num_parts(x.shape[:-1], N, _num_devices())
    if parts > 1:
      y = _by_parts(attend, parts, query, key, value)
    else:
      y = attend(query, key, value)
    y = (y * jax.nn.sigmoid(gate)).reshape(*x.shape[:-1], N * H)
    return Linear(
      (D,), (axes.HEADS, axes.EMBED), 'zero', self.dtype, name='out'
    )(y)


def _attend(
  bias: Array, valid: Array, query: Array, key: Array, value: Array
) -> Array:
  """Weighted sums [..., I, N, H] of values; the scores are float32."""
  scale = math.sqrt(query.shape[-1])
  scores = jnp.einsum('...INH,...JNH->...NIJ', query, key) / scale
  scores = scores.astype(jnp.float32)
  scores += jnp.moveaxis(bias, -1, -3).astype(jnp.float32)
  scores = jnp.where(valid[..., None, None, :], scores, -1e9)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum('...NIJ,...JNH->...INH', weights, value)


def num_parts(
  shape: Sequence[int], num_heads: int, num_devices: int = 1
) -> int:
  """Number of parts in which attention computes the rows of pairs.

  Args:
    shape: (B, rows, residues of a row), or (B, residues), which is one part.
    num_heads: N.
    num_devices: number of devices that share the rows of all chains.
  """
  if len(shape) < 3:
    return 1
  scores, rows = math.prod(shape) * shape[-1] * num_heads, shape[1]
  scores //= num_devices
  fits = lambda parts: rows % parts == 0 and scores // parts <= MOST_SCORES
  return next(filter(fits, range(1, rows)), rows)


def _num_devices() -> int:
  """Number of devices that share the rows of all chains in this mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  divided = nn.logical_to_mesh_axes((axes.BATCH, axes.LENGTH))
  names = [name for one in divided or () if one for name in np.atleast_1d(one)]
  return math.prod(mesh.shape[name] for name in names)


def _by_parts(attend, parts: int, *arrays: Array) -> Array:
  """Attends in one part of the rows after the other, to save memory.

  The backward pass computes the scores again. A part has every `parts`-th row,
  so devices that divide the rows share each part.
  """

  def split(x: Array) -> Array:
    lead, rows = x.shape[0], x.shape[1] // parts
    return jnp.moveaxis(x.reshape(lead, rows, parts, *x.shape[2:]), 2, 0)

  again = jax.checkpoint(lambda part: attend(*part))
  y = jnp.moveaxis(jax.lax.map(again, tuple(map(split, arrays))), 0, 2)
  return y.reshape(y.shape[0], -1, *y.shape[3:])


class TriangleAttention(nn.Module):
  """Pairs that share a residue attend to each other (Algorithms 13 and 14).

  Attributes:
    is_ending: whether pairs share their second residue instead of the first.
    num_heads: N.
    head_dim: H.
    dtype: compute dtype.
  """

  is_ending: bool
  num_heads: int
  head_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, pair_BIJZ: Array, valid_BI: Array) -> Array:
    """Computes the update [B, I, J, Z], which is added to the pairs."""
    turn = lambda x: jnp.swapaxes(x, 1, 2) if self.is_ending else x
    x = LayerNorm(axes.LATENT, self.dtype, name='norm')(turn(pair_BIJZ))
    bias = Linear(
      (self.num_heads,),
      (axes.LATENT, axes.HEADS),
      dtype=self.dtype,
      name='bias',
    )(x)
    attention = GatedAttention(
      self.num_heads, self.head_dim, self.dtype, name='attention'
    )
    # Each row of pairs is a separate sequence. All rows have the same bias.
    y = attention(x, bias[:, None], valid_BI[:, None])
    return turn(y)


class PairTransition(nn.Module):
  """A norm, a wide hidden layer with ReLU, and a linear layer.

  This is Algorithm 15 of AlphaFold 2.

  Attributes:
    factor: width of the hidden layer divided by the width of the input.
    axis: logical axis of the input's last dim.
    dtype: compute dtype.
  """

  factor: int = 4
  axis: str = axes.LATENT
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Computes the update, which is added to the input of the same shape."""
    width = x.shape[-1]
    h = LayerNorm(self.axis, self.dtype, name='norm')(x)
    h = Linear(
      (self.factor * width,),
      (self.axis, axes.MLP),
      'relu',
      self.dtype,
      name='hidden',
    )(h)
    return Linear(
      (width,), (axes.MLP, self.axis), 'zero', self.dtype, name='out'
    )(jax.nn.relu(h))


class SequenceToPair(nn.Module):
  """Updates a pair from products and differences of two residues' features.

  Attributes:
    width: number of features of a residue that are multiplied and subtracted.
    pair_width: Z.
    dtype: compute dtype.
  """

  width: int
  pair_width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, s_BID: Array) -> Array:
    """Computes the update [B, I, J, Z], which is added to the pairs."""
    x = LayerNorm(axes.EMBED, self.dtype, name='norm')(s_BID)
    both = Linear(
      (2, self.width), (axes.EMBED, None, axes.MLP), dtype=self.dtype, name='in'
    )(x)
    one, two = both[:, :, None, 0], both[:, None, :, 1]
    joined = jnp.concatenate([one * two, one - two], axis=-1)
    return Linear(
      (self.pair_width,),
      (axes.MLP, axes.LATENT),
      'zero',
      self.dtype,
      name='out',
    )(joined)
