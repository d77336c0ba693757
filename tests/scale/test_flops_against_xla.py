"""The cost model counts the FLOPs that XLA counts in programs without loops."""

import jax
import pytest

from launch.configs import configuration
from moe.models.anatomy import anatomy
from moe.models.functional import Functional
from moe.planning import execution
from moe.scale import cost

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
COMMON = {
  'D_MODEL': 256,
  'D_FF': 1024,
  'EXPERT_D_FF': 512,
  'NUM_HEADS': 4,
  'HEAD_DIM': 64,
  'VOCAB_SIZE': 4096,
  'SEQUENCE_LENGTH': 256,
  'GROUP_SIZE': 256,
  'BATCH_SIZE': 4,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.1,
}
MODELS = {
  # XLA counts the body of a loop only once. So the models consist of
  # prefix blocks, which are in no loop, and of at most one period, which needs
  # one iteration.
  'dense, one key head for two queries, attention in parts': {
    'SEQUENCE_LENGTH': 512,
    'NUM_LAYERS': 2,
    'NUM_DENSE_PREFIX': 2,
    'NUM_KV_HEADS': 2,
  },
  'sparse every second layer, untied head': {
    'NUM_LAYERS': 2,
    'MOE_EVERY': 2,
    'NUM_KV_HEADS': 4,
    'TIE_EMBEDDINGS': False,
  },
  'sparse with a shared expert, one key head for four queries': {
    'NUM_LAYERS': 2,
    'NUM_DENSE_PREFIX': 1,
    'NUM_KV_HEADS': 1,
    'SHARED_D_FF': 512,
    'NUM_EXPERTS': 16,
    'TOP_K': 4,
    'EXPERT_D_FF': 256,
  },
}


def loaded(sizes):
  macros = COMMON | sizes
  return configuration.load(FILES, [f'{k}={v}' for k, v in macros.items()])


def counted_by_xla(run):
  """XLA's own count of FLOPs: (forward, forward and backward)."""
  objective = run.objective(Functional(run.model), run.data.shape)
  shapes = objective.shapes()
  key = jax.random.key(0)
  params, state = jax.eval_shape(lambda: objective.init(key, shapes)[:2])

  def loss(params, state, batch):
    sums, _, _ = objective.loss(params, state, batch, key, True)
    return sums['cross_entropy']

  count = lambda f: (
    jax.jit(f).lower(params, state, shapes).compile().cost_analysis()['flops']
  )
  return count(loss), count(jax.grad(loss))


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_executed_flops_agree_with_the_count_of_xla(name):
  run = loaded(MODELS[name])
  ts, logical_axes = execution.abstract_state(run)
  active = anatomy(run.model).num_active
  parts = cost.components(ts.params, logical_axes, active)
  made = execution.execution_of(run, num_devices=1)
  got = cost.executed_flops_per_token(parts, made)
  tokens = run.data.batch_size * run.data.sequence_length
  want = counted_by_xla(run)
  assert got[0] * tokens == pytest.approx(want[0], rel=0.02)
  assert got[1] * tokens == pytest.approx(want[1], rel=0.03)
