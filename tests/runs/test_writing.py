"""A model writes samples only if its router needs no later tokens."""

import pytest

from launch.configs import configuration
from moe.runs import writing


def test_a_router_that_looks_ahead_is_refused_by_name():
  files = ['models/tiny.gin', 'parallel/data.gin', 'tasks/builtin.gin']
  macros = [
    'TRAIN_STEPS=200',
    'LEARNING_RATE=0.1',
    'ROUTER=@gates.ExpertChoice',
  ]
  run = configuration.load([*files, 'runs/train.gin'], macros)
  with pytest.raises(
    ValueError, match='runs/choice .* ExpertChoice, which looks'
  ):
    writing.check_causal(run, 'runs/choice')
