"""The empty key/value cache that decoding starts from."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe.types import Cache, Layout, PyTree


def empty_cache(layers: PyTree, shardings: Cache | None = None) -> Cache:
  """Makes a cache without entries.

  Args:
    layers: tree of `jax.ShapeDtypeStruct` with leaves [.., B, S, K, H], from
      `Functional.cache_shapes(B, S)`.
    shardings: a `Cache` of shardings. If it is given, each device makes only
      its own part of an array.

  Returns:
    A cache of zeros. Its entries have segment 0, so no query attends to them.

  Raises:
    ValueError: if the leaves do not agree on B and S.
  """
  sizes = {leaf.shape[-4:-2] for leaf in jax.tree.leaves(layers)}
  if len(sizes) != 1 or len(next(iter(sizes))) != 2:
    raise ValueError(
      'cache layers must be [.., B, S, K, H] arrays that agree on B and S, got '
      f'{sorted(sizes)}: pass what cache_shapes(batch_size, length) returns.'
    )
  slots = jax.ShapeDtypeStruct(next(iter(sizes)), jnp.int32)
  shapes = Cache(slots, slots, jax.ShapeDtypeStruct((), jnp.int32), layers)

  def zeros():
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  return jax.jit(zeros, out_shardings=shardings)()


def shardings(layers: PyTree, layout: Layout, mesh: Mesh) -> Cache:
  """Shardings of a cache: batch axes divide its rows, tensor axes its heads.

  Args:
    layers: see `empty_cache`. The cache of latent attention has one head, so
      tensor axes do not divide it.
    layout: mesh axes by use.
    mesh: mesh of the devices.
  """
  put = lambda *names: NamedSharding(mesh, P(*(n or None for n in names)))
  rows = layout.batch_axes

  def one(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    heads = layout.tensor_axes
    if leaf.shape[-2] % layout.size(heads):
      heads = ()
    return put(*[()] * (leaf.ndim - 4), rows, (), heads)

  return Cache(put(rows), put(rows), put(), jax.tree.map(one, layers))
