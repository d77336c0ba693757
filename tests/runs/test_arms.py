"""The arms of a ladder are read from flags and checked before training."""

import types

import pytest

from moe.runs import arms
from moe.runs.arms import Arm
from moe.runs.run import Data


def test_flags_make_arms():
  found = arms.arms(
    (1, 16), ('shared:SHARED_D_FF=64;TOP_K=1', 'slow:warmup=0.05'), (4, 3, 2, 1)
  )
  assert found == (
    Arm('dense', ('DENSE_TWIN=True',), 4),
    Arm('experts_16', ('NUM_EXPERTS=16',), 3),
    Arm('shared', ('SHARED_D_FF=64', 'TOP_K=1'), 2),
    Arm('slow', (), 1, warmup=0.05),
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (((1,), (), (3,)), 'at least two arms'),
    (((1, 8), (), (3, 1, 1)), 'one number for all 2 arms'),
    (((1, 8), ('x',), (3,)), 'a name, a colon'),
    (((1,), ('x:warmup=long',), (3,)), 'must be a number'),
    (((1,), ('x:warmup=1',), (3,)), 'warmup in .* must be'),
    (((1,), ('x:WARMUP_STEPS = 60',), (3,)), 'use .*warmup=0.05'),
    (((1,), ('x:LEARNING_RATE=1',), (3,)), 'use --learning_rates'),
  ],
)
def test_arms_that_cannot_be_read_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    arms.arms(*arguments)


def test_a_flag_must_not_bind_what_the_ladder_binds():
  arms.check_free(['BATCH_SIZE=4'], 'a --gin. flag')
  with pytest.raises(ValueError, match='a --gin. flag must not bind SEED'):
    arms.check_free(['BATCH_SIZE=4', 'SEED=1'], 'a --gin. flag')


def test_arms_with_different_batches_are_refused_before_training():
  def read(bindings):
    batch = 8 if 'BATCH_SIZE=8' in bindings else 4
    return types.SimpleNamespace(data=Data('verse', ('verse',), 16, batch))

  same = [Arm('dense', (), 1), Arm('sparse', (), 1)]
  assert list(arms.load(same, read)) == ['dense', 'sparse']
  with pytest.raises(ValueError, match='batch_size 4 in dense and 8 in big'):
    arms.load([*same, Arm('big', ('BATCH_SIZE=8',), 1)], read)
