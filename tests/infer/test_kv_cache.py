"""The empty cache has the shapes of the model and the shardings asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe.infer.kv_cache import empty_cache
from moe.types import Cache


def test_nothing_is_filled_or_visible(model):
  cache = empty_cache(model[0].cache_shapes(2, 16))
  assert cache.segment_ids.shape == cache.block_ids.shape == (2, 16)
  assert int(cache.index) == 0
  assert not cache.segment_ids.any()
  # The model has one dense prefix block and one scanned period of one block.
  assert cache.layers['prefix'][0][0].shape == (2, 16, 2, 8)
  assert cache.layers['periods'][0][1].shape == (1, 2, 16, 2, 8)


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit])
def test_arrays_are_made_with_the_sharding_they_are_given(wrap):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  layers = {'key': jax.ShapeDtypeStruct((4, 8, 2, 4), jnp.float32)}
  shardings = Cache(
    rows, rows, NamedSharding(mesh, PartitionSpec()), {'key': rows}
  )
  cache = wrap(lambda: empty_cache(layers, shardings))()
  assert cache.layers['key'].sharding.is_equivalent_to(rows, 4)
  assert cache.layers['key'].addressable_shards[0].data.shape == (2, 8, 2, 4)


def test_layers_that_disagree_are_refused():
  layers = [
    jax.ShapeDtypeStruct((4, length, 2, 4), jnp.float32) for length in (8, 9)
  ]
  with pytest.raises(ValueError, match='agree on B and S'):
    empty_cache(layers)
