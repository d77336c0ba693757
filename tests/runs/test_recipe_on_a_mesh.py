"""The recipe for small sparse models trains alike on one and eight devices."""

import jax
import numpy as np
import pytest

from launch.configs import configuration
from moe.runs import build
from moe.types import TokenBatch
from tests.scale.layouts import FILES, MODEL

pytestmark = pytest.mark.slow

RECIPE = {
  'PREDICTS_AHEAD': True,
  'CAPACITY_FACTOR': 4.0,
  'OUTPUT_INIT': "'depth'",
  'REMAT': "'none'",
  'MOE_EVERY': 1,
  'LEARNING_RATE': 0.01,
  'WARMUP_STEPS': 0,
}


def after_two_steps(devices, **macros):
  """(parameters, losses) of the recipe on a mesh, after two steps."""
  bindings = [f'{k}={v}' for k, v in (MODEL | RECIPE | macros).items()]
  run = configuration.load([*FILES, 'runs/recipe.gin'], bindings)
  program = build.build(run, devices)
  B, T = run.data.shape
  random = np.random.RandomState(0)
  tokens, targets = random.randint(3, 500, (2, B, T)).astype('i4')
  ones = np.ones((B, T), 'i4')
  places = np.broadcast_to(np.arange(T, dtype='i4'), (B, T))
  batch = TokenBatch(
    tokens, targets, ones.astype('f4'), ones, places, 0 * ones, 0 * ones
  )
  ts, losses = program.init(), []
  for _ in range(2):
    ts, metrics = program.train_step(ts, program.put(batch))
    losses.append(float(metrics['loss'][0]))
    assert float(metrics['ahead'][1]) == B * (T - 1)
  return jax.tree.map(np.asarray, ts.params), losses


def test_two_steps_on_eight_devices_are_those_on_one():
  alone, losses = after_two_steps(jax.devices()[:1])
  shared, others = after_two_steps(
    jax.devices()[:8], MESH_DATA=1, MESH_FSDP=2, MESH_EXPERT=4
  )
  np.testing.assert_allclose(losses, others, rtol=1e-5)
  assert losses[1] < losses[0]
  flat, _ = jax.tree_util.tree_flatten_with_path(alone)
  for (path, a), b in zip(flat, jax.tree.leaves(shared), strict=True):
    # The whole array is compared, since a single update of Adam may differ more
    # if its moments are near zero.
    gap = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert gap < 1e-4, jax.tree_util.keystr(path)
