"""Tests of the MoE layer that the benchmarks time."""

import jax
import jax.numpy as jnp
import pytest

from moe.planning import benchmark_layer as layer_bench
from moe.routing import dispatch
from moe.routing.plan import RouterInputs


def test_finer_experts_do_the_same_work():
  sizes = layer_bench.LayerSizes(8, 32, 4, 2, 64, 16, 1.25, 'float32')
  finer = sizes.finer(4)
  assert (finer.experts, finer.top_k, finer.d_ff) == (16, 8, 8)
  assert finer.top_k * finer.d_ff == sizes.top_k * sizes.d_ff


@pytest.mark.slow
@pytest.mark.parametrize(('experts', 'top_k'), [(8, 2), (8, 1), (4, 3)])
def test_balanced_routing_gives_each_expert_equal_rows(experts, top_k, key):
  G, M = 2, 16
  zeros_GM = jnp.zeros((G, M), jnp.int32)
  logits_GME = jax.random.normal(key, (G, M, experts))
  inputs = RouterInputs(
    logits_GME, logits_GME, zeros_GM, zeros_GM, zeros_GM == 0, M
  )
  router = layer_bench.Balanced(num_active=top_k, renormalize=top_k > 1)
  plan = router.route(inputs, {}, jax.random.split(key, G), True)
  for expert_R in plan.expert_GR:
    assert set(jnp.bincount(expert_R).tolist()) == {M * top_k // experts}


@pytest.mark.slow
def test_a_layer_gives_gradients_of_all_its_parameters():
  sizes = layer_bench.LayerSizes(8, 8, 4, 2, 32, 16, 1.0, 'float32')
  layer = layer_bench.make_layer(sizes, dispatch.Sorted)
  arguments = layer.init(jax.random.key(0))
  _, gradients, _ = layer.jitted(*arguments)
  assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(
    jnp.shape, arguments[:2]
  )
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradients))
