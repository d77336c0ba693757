"""AlphaFold 2's structure module: it predicts frames and torsion angles.

Jumper et al. (2021), supplement 1.8, https://doi.org/10.1038/s41586-021-03819-2:
invariant point attention (Algorithm 22), backbone update (23), torsion angles
(20, lines 11 to 14) and frames that start at the identity. Everything here is
computed in float32 or above, whatever the rest of the model uses. The letters
are B chains, I and J residues, N heads, H head width, P points of a head, D
width of a residue, Z width of a pair.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.linear import LayerNorm, Linear
from moe.modalities.rigid import Rigid, from_update, identity
from moe.types import Array

NUM_TORSIONS = 7
_EPSILON = 1e-8


class Points(NamedTuple):
  """Queries, keys and values of residues; points are in a residue's own frame.

  Attributes:
    query: [B, I, N, H]; key and value have the same shape.
    query_points: [B, I, N, P, 3]; key_points and value_points have this shape
      too, but value_points may have another P.
  """

  query: Array
  key: Array
  value: Array
  query_points: Array
  key_points: Array
  value_points: Array


def point_attention(
  x: Points, bias_BIJN: Array, weight_N: Array, frames: Rigid, valid_BI: Array
) -> Array:
  """Attention weights [B, N, I, J] (Jumper et al. 2021, Algorithm 22, line 7).

  Args:
    x: queries and keys.
    bias_BIJN: bias of the scores, computed from the pairs.
    weight_N: weight of the distances in each head, before softplus.
    frames: [B, I], frames of the residues.
    valid_BI: bool, False for padding, which no residue attends to.
  """
  head_dim, num_points = x.query.shape[-1], x.query_points.shape[-2]
  content_BNIJ = jnp.einsum(
    'BINH,BJNH->BNIJ', x.query, x.key, precision='highest'
  ) / math.sqrt(head_dim)
  around = frames.expand(2)
  q_BINP3 = around.apply(x.query_points)
  k_BJNP3 = around.apply(x.key_points)
  # We square the differences, because expanding (q - k)^2 loses all digits for
  # residues that are near each other and far from the origin.
  apart = jnp.square(q_BINP3[:, :, None] - k_BJNP3[:, None])
  distance_BNIJ = jnp.moveaxis(jnp.sum(apart, axis=(-1, -2)), -1, 1)
  weight_N = jax.nn.softplus(weight_N) * math.sqrt(2 / (9 * num_points)) / 2
  scores_BNIJ = math.sqrt(1 / 3) * (
    content_BNIJ
    + jnp.moveaxis(bias_BIJN, -1, 1)
    - weight_N[:, None, None] * distance_BNIJ
  )
  scores_BNIJ = jnp.where(valid_BI[:, None, None], scores_BNIJ, -1e9)
  return jax.nn.softmax(scores_BNIJ, axis=-1)


def point_results(
  x: Points, weights_BNIJ: Array, pair_BIJZ: Array, frames: Rigid
) -> dict[str, Array]:
  """Weighted sums over residues, in the frame of each residue.

  These are lines 8 to 10 of Algorithm 22 of Jumper et al. (2021).

  Returns:
    'value' [B, I, N, H], 'points' [B, I, N, P, 3], 'norm' [B, I, N, P] of the
    points, and 'pair' [B, I, N, Z], by name.
  """
  gather = lambda spec, y: jnp.einsum(
    spec, weights_BNIJ, y, precision='highest'
  )
  around = frames.expand(2)
  points = gather('BNIJ,BJNPx->BINPx', around.apply(x.value_points))
  points = around.apply_inverse(points)
  return {
    'value': gather('BNIJ,BJNH->BINH', x.value),
    'points': points,
    'norm': jnp.sqrt(jnp.sum(jnp.square(points), axis=-1) + _EPSILON),
    'pair': gather('BNIJ,BIJZ->BINZ', pair_BIJZ),
  }


class InvariantPointAttention(nn.Module):
  """Attention of residues, invariant under rigid motions.

  This is Algorithm 22 of AlphaFold 2, but the linear layers have biases.

  Attributes:
    num_heads: N.
    head_dim: H of queries, keys and values.
    num_query_points: P of queries and keys.
    num_value_points: P of values.
    start: initial values of the output's kernel, see `Linear`.
    dtype: compute dtype.
  """

  num_heads: int = 12
  head_dim: int = 16
  num_query_points: int = 4
  num_value_points: int = 8
  start: str = 'zero'
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    at_least = bounds.at_least
    at_least(1, 'POINT_HEADS', self.num_heads, 'heads of point attention')
    at_least(1, 'POINT_HEAD_DIM', self.head_dim, 'the width of a head')
    points = 'points of a head'
    at_least(1, 'num_query_points', self.num_query_points, points)
    at_least(1, 'num_value_points', self.num_value_points, points)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, s_BID: Array, pair_BIJZ: Array, frames: Rigid, valid_BI: Array
  ) -> Array:
    """Attends, and returns an array [B, I, D]; the frames are [B, I]."""
    N, D = self.num_heads, s_BID.shape[-1]

    def project(name, *shape):
      logical = (axes.EMBED, axes.HEADS, axes.KV, None)[: 1 + len(shape)]
      layer = Linear(shape, logical, dtype=self.dtype, name=name)
      return layer(s_BID)

    x = Points(
      query=project('query', N, self.head_dim),
      key=project('key', N, self.head_dim),
      value=project('value', N, self.head_dim),
      query_points=project('query_points', N, self.num_query_points, 3),
      key_points=project('key_points', N, self.num_query_points, 3),
      value_points=project('value_points', N, self.num_value_points, 3),
    )
    bias_BIJN = Linear(
      (N,), (None, axes.HEADS), dtype=self.dtype, name='pair_bias'
    )(pair_BIJZ)
    # softplus(log(e - 1)) = 1, so `weight_N` is 1 at first after softplus.
    start = nn.initializers.constant(math.log(math.e - 1))
    weight_N = self.param(
      'point_weight',
      nn.with_logical_partitioning(start, (axes.HEADS,)),
      (N,),
      jnp.float32,
    ).astype(self.dtype)
    weights_BNIJ = point_attention(x, bias_BIJN, weight_N, frames, valid_BI)
    results = point_results(
      x, weights_BNIJ, pair_BIJZ.astype(self.dtype), frames
    )
    flat = [y.reshape(*y.shape[:2], -1) for y in results.values()]
    return Linear(
      (D,), (axes.MLP, axes.EMBED), self.start, self.dtype, name='out'
    )(jnp.concatenate(flat, axis=-1))


class Transition(nn.Module):
  """A residual branch of three linear layers, then a norm (Algorithm 20)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, s_BID: Array) -> Array:
    """Applies the layers to [B, I, D]; the result has the same shape."""
    D, h = s_BID.shape[-1], s_BID
    for i, init in enumerate(('relu', 'relu', 'zero')):
      h = Linear(
        (D,), (axes.EMBED, None), init, self.dtype, name=f'linear_{i}'
      )(h if i == 0 else jax.nn.relu(h))
    return LayerNorm(axes.EMBED, self.dtype, name='norm')(s_BID + h)


class BackboneUpdate(nn.Module):
  """A rigid motion of each residue in its frame (AlphaFold 2, Algorithm 23).

  At first it is the identity, since all parameters of this layer start at 0.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, s_BID: Array) -> Rigid:
    """Computes motions [B, I] from residues [B, I, D]."""
    layer = Linear((6,), (axes.EMBED, None), 'zero', self.dtype, name='linear')
    return from_update(layer(s_BID))


class TorsionAngles(nn.Module):
  """Computes the seven torsion angles (Algorithm 20, lines 11 to 14).

  Attributes:
    width: width of the hidden layers.
    num_blocks: residual blocks of two linear layers.
    dtype: compute dtype.
  """

  width: int = 128
  num_blocks: int = 2
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, s_BID: Array, first_BID: Array) -> Array:
    """(cos, sin) of the torsions, [B, I, 7, 2], not normalised yet.

    Args:
      s_BID: residues after a layer of the structure module.
      first_BID: residues before the first layer.
    """

    def linear(x, name, init='linear', features=(self.width,)):
      logical = (axes.EMBED,) + (None,) * len(features)
      return Linear(features, logical, init, self.dtype, name=name)(x)

    h = linear(jax.nn.relu(s_BID), 'state')
    h = h + linear(jax.nn.relu(first_BID), 'first')
    for i in range(self.num_blocks):
      inner = linear(jax.nn.relu(h), f'block_{i}_in', 'relu')
      h = h + linear(jax.nn.relu(inner), f'block_{i}_out', 'zero')
    return linear(jax.nn.relu(h), 'out', features=(NUM_TORSIONS, 2))


class Structure(NamedTuple):
  """Results of the structure module; the first dim L counts its layers.

  Attributes:
    frames: [L, B, I], Angstrom.
    torsions: [L, B, I, 7, 2], (cos, sin), not normalised.
    states: [L, B, I, D], features of the residues.
  """

  frames: Rigid
  torsions: Array
  states: Array


class StructureModule(nn.Module):
  """Layers with shared weights that move the frames of residues (Algorithm 20).

  Attributes:
    attention: makes the invariant point attention.
    num_layers: L.
    torsion_width: hidden width of the torsion angles.
    unit_length: the module computes in this unit of length, in Angstrom.
    dtype: compute dtype.
  """

  attention: Callable[..., nn.Module] = InvariantPointAttention
  num_layers: int = 8
  torsion_width: int = 128
  unit_length: float = 10.0
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    bounds.at_least(1, 'STRUCTURE_LAYERS', self.num_layers, 'the layers')
    bounds.at_least(1, 'TORSION_WIDTH', self.torsion_width, 'a hidden layer')
    unit = 'Angstrom of one unit'
    bounds.within('unit_length', self.unit_length, unit, above=0)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, s_BID: Array, pair_BIJZ: Array, valid_BI: Array
  ) -> Structure:
    """Frames, torsions and states of every layer.

    No gradient passes from layer to layer through rotations, as in AlphaFold:
    their gradient through a chain of frames is unstable.
    """
    D = s_BID.shape[-1]
    norm = lambda axis, name: LayerNorm(axis, self.dtype, name=name)
    first_BID = norm(axes.EMBED, 'state_norm')(s_BID)
    pair_BIJZ = norm(axes.LATENT, 'pair_norm')(pair_BIJZ)
    s_BID = Linear((D,), (axes.EMBED, None), dtype=self.dtype, name='state_in')(
      first_BID
    )
    attention = self.attention(dtype=self.dtype, name='point_attention')
    attention_norm = norm(axes.EMBED, 'attention_norm')
    transition = Transition(self.dtype, name='transition')
    update = BackboneUpdate(self.dtype, name='backbone_update')
    torsion = TorsionAngles(
      self.torsion_width, dtype=self.dtype, name='torsions'
    )
    frames = identity(s_BID.shape[:2], self.dtype)
    layers = []
    for _ in range(self.num_layers):
      s_BID = s_BID + attention(s_BID, pair_BIJZ, frames, valid_BI)
      s_BID = transition(attention_norm(s_BID))
      frames = frames.compose(update(s_BID))
      scaled = Rigid(frames.rotation, frames.translation * self.unit_length)
      layers.append(Structure(scaled, torsion(s_BID, first_BID), s_BID))
      stopped = jax.lax.stop_gradient(frames.rotation)
      frames = Rigid(stopped, frames.translation)
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)
