"""Tests launch.ladder: from flags to runs, and from runs to a page."""

import json
import pathlib
import re
import shlex

import pytest

from launch import ladder as verb
from launch.configs import configuration
from moe.runs import arms, ladder
from moe.runs.ladder import Finished, Tried

CONFIG = """
from __gin__ import dynamic_registration
from moe.runs import run
from moe.train import trainer
trainer.Settings.seed = 0
run.Data.train = 'zh_mix'
run.Data.evaluation = ('laws',)
"""
FLAGS = [
  '--gin_file=runs/ladder_cpu.gin',
  '--gin.BATCH_SIZE=4',
  '--experts=1,8',
  '--seeds=1',
  '--tokens=1e6',
]


def write_run(directory, bits):
  """Writes a finished run with one evaluation; returns its path."""
  directory.mkdir(parents=True)
  (directory / 'config.gin').write_text(CONFIG)
  log = {'step': 1, 'tokens': 100, 'time': {'elapsed': 5.0}}
  (directory / 'log.jsonl').write_text(json.dumps(log) + '\n')
  laws = {'bits_per_char': bits, 'cross_entropy': bits / 2}
  scores = {'step': 1, 'eval': {'laws': laws}}
  (directory / 'eval.jsonl').write_text(json.dumps(scores) + '\n')
  counts = {'params_total': 10, 'params_active': 10}
  (directory / 'run.json').write_text(json.dumps(counts))
  return str(directory)


@pytest.fixture
def started(monkeypatch):
  """What `ladder.run` is given: [(the ladder, the command of a run)]."""
  found = []

  def run(plan, train, workdir):
    found.append((plan, train(['NUM_EXPERTS=8'])))
    made = {'dense': 7.5, 'experts_8': 7.0}
    directories = {
      name: [write_run(pathlib.Path(workdir) / name, bits)]
      for name, bits in made.items()
    }
    tried = dict.fromkeys(made, (Tried(0.01, 100, 7.0, 3.5),))
    return Finished(tried, dict.fromkeys(made, 0.01), directories)

  monkeypatch.setattr(ladder, 'run', run)
  return found


def test_flags_become_runs_and_runs_become_a_page(started, tmp_path, capsys):
  assert verb.main([*FLAGS, f'--workdir={tmp_path}', '--json']) == 0
  ((plan, command),) = started
  assert [arm.name for arm in plan.arms] == ['dense', 'experts_8']
  assert (plan.tokens, plan.tokens_per_step) == (1_000_000, 4 * 128)
  assert command[1:] == [
    '-m', 'launch.train', '--gin_file=runs/ladder_cpu.gin',
    '--gin.BATCH_SIZE=4', '--gin.NUM_EXPERTS=8',
  ]  # fmt: skip
  summary = json.loads(capsys.readouterr().out)
  assert summary['command'].startswith('python -m launch.ladder --gin_file=')
  arm = summary['tasks']['laws']['arms']['experts_8']
  assert arm['gain'] == [0.5]
  # The law needs the number of experts to give a gain. So it has got this
  # number.
  assert arm['law_gain'] is not None
  for name in ('ladder.html', 'ladder.svg', 'ladder.json'):
    assert (tmp_path / name).is_file(), name


def test_the_page_of_a_stopped_ladder_says_so(
  started, tmp_path, capsys, monkeypatch
):
  run = ladder.run
  monkeypatch.setattr(ladder, 'run', lambda *a: run(*a)._replace(missing=2))
  assert verb.main([*FLAGS, f'--workdir={tmp_path}']) == 75
  told = 'Unfinished: 2 of the runs at the best rates have not ended.'
  assert capsys.readouterr().out.startswith(told)
  assert told in (tmp_path / 'ladder.html').read_text('utf-8')


def test_a_binding_that_the_ladder_sets_is_one_sentence(
  started, tmp_path, capsys
):
  flags = [*FLAGS, f'--workdir={tmp_path}', '--gin.TRAIN_STEPS=5']
  assert verb.main(flags) == 2
  assert 'must not bind TRAIN_STEPS' in capsys.readouterr().err
  assert not started


ROOT = pathlib.Path(verb.__file__).parents[1]
SOURCES = {
  'gin_configs/runs/ladder_cpu.gin': 3,
  'gin_configs/runs/ladder_gpu_256.gin': 1,
  'launch/sparsity_gpu.sh': 1,
}


def commands(source):
  """The words of every command of launch.ladder in a file."""
  text = (ROOT / source).read_text(encoding='utf-8')
  text = re.sub(r'\\\n#?', ' ', text)
  lines = re.findall('-m launch.ladder (.*)', text)
  return [shlex.split(line) for line in lines]


def reader(files, overrides):
  return lambda bindings: configuration.load(files, [*overrides, *bindings])


@pytest.mark.parametrize('source', SOURCES)
def test_each_command_of_a_file_describes_runs(source):
  found = commands(source)
  assert len(found) == SOURCES[source]
  for words in found:
    args, overrides = verb.parse(words)
    wanted = arms.arms(args.experts, args.arm, args.seeds)
    assert len(arms.load(wanted, reader(args.gin_file, overrides))) >= 3
