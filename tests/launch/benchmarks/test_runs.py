"""The benchmarks of saves and of whole runs."""

import argparse
import json

import pytest

from launch import bench
from launch.benchmarks import runs

TINY = ['NUM_LAYERS=1', 'NUM_HEADS=1', 'NUM_KV_HEADS=1', 'HEAD_DIM=8']
TINY += ['D_MODEL=8', 'EXPERT_D_FF=8', 'VOCAB_SIZE=32', 'SEQUENCE_LENGTH=16']
TINY += ['BATCH_SIZE=8', 'GROUP_SIZE=16']


@pytest.mark.slow
def test_a_save_is_timed_beside_the_steps():
  args = argparse.Namespace(gin_file=[], rounds=2, json=True)
  scores = {s.name: s.value for s in runs._saved(args, TINY, 'command')}
  assert scores['size of the checkpoint'] > 0
  assert scores['launch.checkpoint verify'] > 0
  # The loop waits for the copy of the arrays, not for the files.
  waits = scores['time that the loop waits for a save']
  assert waits <= scores['time until the step is committed']
  assert 0 < scores['share of the steps, at one save a minute'] < 1


@pytest.mark.nightly
def test_two_processes_are_compared_with_one(capsys):
  pytest.importorskip('seqio')
  words = ['step', '--compare=processes', '--rounds=1', '--json']
  assert bench.main(words) == 0
  report = json.loads(capsys.readouterr().out)
  assert [run['name'] for run in report['runs']] == [
    '1 process with 8 devices',
    '2 processes with 4 devices',
  ]
  assert report['ratio'] > 0
