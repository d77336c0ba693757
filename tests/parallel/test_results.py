"""Several processes give the samples and the scores of one process."""

import json

import pytest

from tests.parallel.cluster import started
from tests.parallel.test_training import ended, started_run

# A short run that writes samples. Later flags override earlier ones.
SHORT = [
  '--gin.TRAIN_STEPS=4',
  '--gin.SAVE_PERIOD=4',
  '--gin.EVAL_PERIOD=0',
  "--gin.PROMPTS=('春',)",
]


def printed(arguments, num_processes):
  """What each process of a command prints, without the lines of Gloo."""
  processes = started(arguments, num_processes, 8 // num_processes)
  texts = [process.communicate(timeout=300) for process in processes]
  assert {p.returncode for p in processes} == {0}, texts
  return [
    '\n'.join(x for x in out.splitlines() if not x.startswith('[Gloo]'))
    for out, _ in texts
  ]


@pytest.fixture(scope='module')
def run_of_two(tmp_path_factory, cache_dir):
  """The work directory of a run that used two processes."""
  pytest.importorskip('seqio')
  workdir = tmp_path_factory.mktemp('results') / 'run'
  ended(started_run(workdir, 2, SHORT))
  return workdir


@pytest.mark.nightly
def test_two_processes_write_the_samples_of_one(run_of_two):
  path = run_of_two / 'samples.json'
  samples = json.loads(path.read_text())
  assert [sample['prompt'] for sample in samples] == ['春', '春']
  path.unlink()
  # The run has ended, so one process restores the same parameters and writes
  # the samples again.
  ended(started_run(run_of_two, 1, SHORT))
  assert json.loads(path.read_text()) == samples


@pytest.mark.nightly
def test_two_processes_print_the_greedy_sample_of_one_once(run_of_two):
  arguments = ['-m', 'launch.sample', f'--checkpoint={run_of_two}']
  arguments += ['--prompt=春', '--temperature=0', '--max_tokens=8']
  (expected,) = printed(arguments, 1)
  assert expected.startswith('春')
  assert printed(arguments, 2) == [expected, '']


@pytest.mark.nightly
def test_two_processes_print_the_scores_of_one_once(run_of_two):
  arguments = ['-m', 'launch.evaluate', f'--checkpoint={run_of_two}']
  arguments += ['--task=builtin_couplets', '--limit=8', '--json']
  (expected,) = printed(arguments, 1)
  first, second = printed(arguments, 2)
  assert second == ''
  found, wanted = json.loads(first), json.loads(expected)
  assert found['nats'] == pytest.approx(wanted['nats'], rel=1e-5)
  assert found.keys() == wanted.keys()
