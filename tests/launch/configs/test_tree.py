"""A loaded run has all values of its configuration and needs gin no longer."""

import functools

import gin
import jax
import numpy as np
import pytest

from launch.configs import configuration
from launch.configs.bindings import Binding
from launch.configs.gin_values import Macro, Reference
from launch.configs.tree import Tree
from moe.models import functional
from moe.models.block import Block
from moe.objectives.language import batch_shapes
from moe.routing import gates
from moe.types import Layout

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
SIZES = {
  'D_MODEL': 16,
  'NUM_HEADS': 2,
  'NUM_KV_HEADS': 1,
  'HEAD_DIM': 8,
  'NUM_EXPERTS': 4,
  'EXPERT_D_FF': 8,
  'GROUP_SIZE': 32,
  'VOCAB_SIZE': 64,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.1,
}
# These two configurations differ in values that are used only when a model is
# traced.
SPARSE = {'NUM_LAYERS': 2, 'TOP_K': 3}
TWIN = {'NUM_LAYERS': 1, 'DENSE_TWIN': True, 'EXPERT_D_FF': 24, 'HEAD_DIM': 4}


def load(macros):
  bound = [f'{name}={value}' for name, value in (SIZES | macros).items()]
  return configuration.load(FILES, bound)


def hidden_states(run):
  """The hidden states [B, T, D] that the run's model computes in training."""
  model = functional.make_functional(run.model, (), Layout())
  batch = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), batch_shapes(2, 16))
  tokens = np.arange(32, dtype=np.int32).reshape(2, 16)
  batch = batch._replace(tokens=tokens)
  router_key, dropout_key = jax.random.split(jax.random.key(1))

  @jax.jit
  def states():
    params, state, _ = model.init(jax.random.key(0), batch)
    rngs = {'router': router_key, 'dropout': dropout_key}
    return model.apply(params, state, batch, rngs, True).hidden

  return states()


def test_two_runs_of_one_process_behave_each_as_its_own():
  alone = [hidden_states(load(macros)) for macros in (SPARSE, TWIN)]
  together = [load(macros) for macros in (SPARSE, TWIN)]
  for expected, run in zip(alone, together, strict=True):
    np.testing.assert_array_equal(hidden_states(run), expected)
  assert not np.array_equal(*alone)


def test_a_factory_is_a_partial_of_the_class_itself():
  stack = load(SPARSE).model.stack
  assert isinstance(stack, functools.partial)
  block = stack(parent=None).block
  assert block.func is Block
  assert type(block.keywords['moe'](parent=None).anatomy().router) is gates.TopK


def test_gin_knows_nothing_of_a_run_that_is_loaded():
  load(SPARSE)
  assert gin.config_str() == gin.operative_config_str() == ''


def pair(left=0, right=0):
  return left, right


def made(*bindings):
  return Tree(
    [Binding(*(*parts, 'a.gin:1', 'm.pair')) for parts in bindings]
  ).make(pair)


def test_values_lie_behind_macros_and_in_containers():
  values = {'a': [Macro('INNER')]}
  bindings = (pair, 'left', Macro('OUTER')), (None, 'OUTER', values)
  assert made(*bindings, (None, 'INNER', 3)) == ({'a': [3]}, 0)


def test_one_reference_is_one_partial_wherever_it_stands():
  router = Reference('gates.TopK', False, gates.TopK)
  left, right = made((pair, 'left', router), (pair, 'right', router))
  assert left is right


def test_the_last_binding_counts():
  assert made((pair, 'left', 1), (pair, 'left', 2)) == (2, 0)


def test_an_object_is_not_made_of_itself():
  reference = Reference('m.pair', True, pair)
  with pytest.raises(ValueError, match="'m.pair' must not be made of itself"):
    made((pair, 'left', reference))
