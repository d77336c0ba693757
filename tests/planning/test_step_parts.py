"""Tests the parts of a training step that a benchmark times."""

import jax
import pytest

from launch.configs import configuration
from moe.planning import step_parts
from moe.runs import build
from moe.runs.run import optimizer_of

SIZES = (
  'D_MODEL=8', 'NUM_HEADS=1', 'NUM_KV_HEADS=1', 'HEAD_DIM=8', 'D_FF=8',
  'NUM_EXPERTS=2', 'EXPERT_D_FF=4', 'VOCAB_SIZE=300', 'SEQUENCE_LENGTH=16',
  'BATCH_SIZE=2', 'GROUP_SIZE=16', 'TRAIN_STEPS=9', 'WARMUP_STEPS=1',
  'LEARNING_RATE=0.1',
)  # fmt: skip
FILES = (
  'models/small.gin', 'parallel/data.gin', 'tasks/builtin.gin', 'runs/train.gin'
)  # fmt: skip


def parts_of(*bindings):
  run = configuration.load(FILES, [*SIZES, *bindings])
  batch = step_parts.random_batch(*run.data.shape, run.model.vocab_size)
  start = build.build(run, jax.devices()[:1]).init()
  return step_parts.timed(run.model, optimizer_of(run), start, batch)


def test_the_targets_of_a_random_batch_are_its_next_tokens():
  batch = step_parts.random_batch(2, 8, vocab_size=5)
  assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
  assert batch.tokens.max() < 5
  assert batch.loss_weights.sum() == 16


@pytest.mark.slow
@pytest.mark.parametrize(
  'bindings, network',
  [
    (('ROUTER=@gates.Sigmoid', 'LOAD_BALANCE=0.0'), 'experts of 2 layers'),
    (('MOE_EVERY=0', 'TIE_EMBEDDINGS=False'), 'network of 2 layers'),
    (('DENSE_TWIN=True',), 'network of 2 layers'),
  ],
  ids=['a router with state', 'a dense stack', 'a dense twin'],
)
def test_the_parts_of_a_step_run(bindings, network):
  parts = parts_of('NUM_LAYERS=2', 'UNROLL=2', *bindings)
  names = ['attention of 2 layers', network, 'table and head', 'optimizer']
  assert [part.name for part in parts] == names
  assert all(part.sample() > 0 for part in parts)


def test_blocks_of_two_kinds_are_refused():
  with pytest.raises(ValueError, match='set NUM_DENSE_PREFIX=0 and MOE_EVERY'):
    parts_of('NUM_LAYERS=2', 'MOE_EVERY=2')
