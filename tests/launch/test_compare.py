"""Tests launch.compare, which compares runs by seed."""

import json

import pytest

from launch import compare

CONFIG = """
from __gin__ import dynamic_registration
from moe.runs import run
from moe.train import trainer
from nowhere import gates
SEED = {seed}
EVAL_TASKS = ('poems',)
trainer.Settings.seed = %SEED
run.Data.train = 'poems'
run.Data.evaluation = %EVAL_TASKS
run.Run.settings = @trainer.Settings()
"""


def write_run(directory, seed, bits):
  """Writes a work directory with one evaluation; returns its path."""
  directory.mkdir()
  (directory / 'config.gin').write_text(CONFIG.format(seed=seed))
  (directory / 'log.jsonl').write_text('{"step": 1, "tokens": 100}\n')
  scores = {'step': 1, 'eval': {'poems': {'bits_per_char': bits}}}
  (directory / 'eval.jsonl').write_text(json.dumps(scores) + '\n')
  return str(directory)


@pytest.fixture
def argv(tmp_path):
  sparse = write_run(tmp_path / 'sparse', 3, 7.0)
  return [sparse, '--against', write_run(tmp_path / 'dense', 3, 7.5)]


def test_a_json_object_has_seeds_and_gains(argv, capsys):
  assert compare.main([*argv, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['seeds'] == [3]
  assert found['tasks']['poems']['gain'] == [0.5]
  *_, gain = found['scores']
  assert (gain['value'], gain['n'], gain['low']) == (0.5, 1, None)
  assert gain['command'].startswith('python -m launch.compare ')


def test_the_text_gives_the_gain_and_the_file_of_the_curves(
  argv, tmp_path, capsys
):
  output = tmp_path / 'curves.html'
  assert compare.main([*argv, f'--output={output}']) == 0
  out = capsys.readouterr().out
  assert 'sparse gains 0.5000 bits per character on dense' in out
  assert out.endswith(f'curves: {output}\n') and output.exists()


def test_curves_of_an_unknown_kind_are_refused(argv, capsys):
  with pytest.raises(SystemExit):
    compare.main([*argv, '--output=curves.txt'])
  assert 'must end in one of .html' in capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_one_sentence(argv, tmp_path, capsys):
  (tmp_path / 'dense' / 'log.jsonl').unlink()
  assert compare.main(argv) == 2
  error = capsys.readouterr().err
  assert 'dense/log.jsonl must exist' in error
  assert error.count('\n') == 1
