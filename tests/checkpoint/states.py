"""A small training state, and functions that save and compare it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.checkpoint import save

META = {'manifest_hash': 'abc', 'mesh': {'data': 1}, 'seed': 0}


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any
  state: Any


def make_state(step=0, width=4):
  params = {
    'decoder': {'kernel': jnp.arange(8.0 * width).reshape(8, width) + step},
    'head': jnp.full((3,), 0.5 + step),
  }
  return State(
    step=jnp.int32(step),
    params=params,
    opt_state=optax.adamw(1e-3).init(params),
    state={'router_bias': jnp.arange(2.0)},
  )


def abstract(state, sharding=None):
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )


def save_steps(directory, steps, metrics=None, **options):
  options = {'best_metric': 'bits_per_char', **options}
  saver = save.Checkpointer(directory, **options)
  for step in steps:
    scores = {'bits_per_char': metrics[step]} if metrics else None
    saver.save(step, make_state(step), META, scores)
  saver.close()
  return saver


def assert_same(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)
