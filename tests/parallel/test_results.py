"""Several processes give the samples, scores and logs of one process."""

import json
import math

import pytest

from moe.train import record_log
from tests.parallel.cluster import started
from tests.parallel.test_training import FLAGS, ended, started_run

# A short run that writes samples. Later flags override earlier ones.
SHORT = [
  '--gin.TRAIN_STEPS=4',
  '--gin.SAVE_PERIOD=4',
  '--gin.EVAL_PERIOD=0',
  '--gin.run.Data.max_bad_fraction=0.5',
  "--gin.PROMPTS=('春',)",
]

# A program in which only process 1 cannot read one of ten records.
UNREADABLE = """
import os, sys
from launch import train
from moe.data import store
read = store.Store.read
def read_most(self, indices, on_error=None):
  found = read(self, indices, on_error)
  for place, index in enumerate(indices):
    if on_error and index % 10 == 9:
      on_error(int(index), ValueError('unreadable'))
      found[place] = None
  return found
if os.environ['PROCESS_ID'] == '1':
  store.Store.read = read_most
sys.exit(train.main(sys.argv[1:]))
"""


def printed(arguments, num_processes):
  """What each process of a command prints."""
  processes = started(arguments, num_processes, 8 // num_processes)
  texts = [process.communicate(timeout=300) for process in processes]
  assert {p.returncode for p in processes} == {0}, texts
  return [out.strip() for out, _ in texts]


@pytest.fixture(scope='module')
def run_of_two(tmp_path_factory, cache_dir):
  """The work directory of a run that used two processes."""
  pytest.importorskip('seqio')
  workdir = tmp_path_factory.mktemp('results') / 'run'
  arguments = ['-c', UNREADABLE, *FLAGS, *SHORT, f'--workdir={workdir}']
  ended(started(arguments, 2, 4))
  return workdir


@pytest.mark.nightly
def test_bad_records_of_process_1_are_in_the_log(run_of_two):
  entries = record_log.read(run_of_two / 'quarantine.jsonl')
  assert entries and all(entry['record'] % 10 == 9 for entry in entries)
  steps = [entry['step'] for entry in entries]
  assert steps == sorted(steps) and steps[-1] <= 4


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


# A program that prints the losses of two sources, whose rows alternate. The
# loss of the second source is NaN.
LOSSES = """
import json
from moe.parallel import processes
processes.initialize()
import jax
import numpy as np
from moe.data.order import Source
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train.reporter import losses_by_source
from tests.train import toy
mesh = make_mesh(MeshShape(), jax.devices())
program = toy.make_toy_program(toy.make_objective(), mesh=mesh)
whole = toy.make_batch(0)
whole.tokens[3] = toy.POISON
rows = program.own_rows(len(whole.tokens))
batch = jax.tree.map(lambda array: array[rows], whole)
sources = [
  Source(name, np.arange(i, 8, 2), np.flatnonzero(rows % 2 == i))
  for i, name in enumerate(('even', 'odd'))
]
print(json.dumps(losses_by_source(program, program.init(), batch, sources)))
"""


@pytest.mark.nightly
def test_two_processes_find_the_losses_by_source_of_one():
  (text,) = printed(['-c', LOSSES], 1)
  even, odd = json.loads(text)
  assert math.isfinite(even) and math.isnan(odd)
  for text in printed(['-c', LOSSES], 2):
    assert json.loads(text) == pytest.approx([even, odd], 1e-6, nan_ok=True)


# A program in which each process gives as many entries as its number.
GATHERED = """
import json
from moe.parallel import processes
processes.initialize()
import jax
from moe.parallel import multihost
number = jax.process_index()
entries = [{'text': '春', 'number': number}] * number
print(json.dumps(multihost.gathered(entries)))
"""


@pytest.mark.slow
def test_all_processes_get_the_entries_of_all():
  entry = {'text': '春', 'number': 1}
  for text in printed(['-c', GATHERED], 2):
    assert json.loads(text) == [entry]
