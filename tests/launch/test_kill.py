"""A run that is killed many times ends with exactly the same state.

tests/train/test_kill.py tests the same with a toy model, which starts faster.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from moe import failpoints
from moe.train import goodput, record_log
from tests.launch import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
LOW_MEMORY = [
  "--gin.MOMENT_DTYPE='int8'",
  "--gin.PARAM_DTYPE='bfloat16'",
  "--gin.GRAD_DTYPE='bfloat16'",
]
FLAGS = [
  *tiny_run.FLAGS,
  '--gin.SAVE_PERIOD=7',
  '--gin.EVAL_PERIOD=20',
]


def command(workdir, steps, formats):
  flags = [*FLAGS, *formats, f'--gin.TRAIN_STEPS={steps}']
  flags.append(f'--workdir={workdir}')
  return [sys.executable, '-m', 'launch.train', *flags]


def environment(cache):
  return {
    **os.environ,
    'WUDAO_CACHE': str(cache),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
  }


def final_arrays(workdir, steps):
  """Path -> array, for all arrays of the last checkpoint."""
  import jax
  import orbax.checkpoint as ocp

  step = workdir / 'checkpoints' / str(steps)
  tree = ocp.PyTreeCheckpointer().restore(step / 'state')
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def records(path):
  """The records of a log file, without their times."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in r.items() if k != 'time'} for r in lines]


def logged_step(workdir):
  """The last step in the log of a run."""
  log = record_log.read(workdir / 'log.jsonl')
  return log[-1]['step'] if log else 0


def wait_for_step(process, workdir, step):
  """Waits until the log holds the step; fails if the run ends before that."""
  log = workdir / 'log.jsonl'
  while True:
    try:
      process.wait(timeout=0.005)
      raise AssertionError(process.stderr.read().decode())
    except subprocess.TimeoutExpired:
      if log.exists() and f'"step": {step},' in log.read_text():
        return


@pytest.mark.parametrize(
  'formats, num_kills, share',
  [
    # The clock of an attempt misses about 0.1 s, and attempts are short here.
    pytest.param([], 20, 0.02, id='float32', marks=pytest.mark.nightly),
    pytest.param(
      LOW_MEMORY, 5, 0.01, id='low_memory', marks=pytest.mark.nightly
    ),
  ],
)
def test_kills_change_no_bit_of_the_run(tmp_path, formats, num_kills, share):
  pytest.importorskip('seqio')
  env, steps = environment(tmp_path / 'cache'), 200

  def run(workdir, request=''):
    return subprocess.Popen(
      command(workdir, steps, formats),
      cwd=ROOT,
      env=env | ({failpoints.VARIABLE: request} if request else {}),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
    )

  def finish(process):
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()

  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  finish(run(whole))
  for place in ('run.start', 'run.compile', 'file.written'):
    process = run(killed, f'{place}=kill')
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  rng, wall = random.Random(0), 0.0
  for step in sorted(rng.sample(range(1, steps - 9), num_kills)):
    # An earlier attempt may already have logged this step. The kill then waits
    # for the first step that is not yet in the log.
    step = max(step, logged_step(killed) + 1)
    begin = time.monotonic()
    process = run(killed)
    wait_for_step(process, killed, step)
    with contextlib.suppress(subprocess.TimeoutExpired):
      # The random delay makes the kill hit a step, a save or an evaluation.
      process.communicate(timeout=rng.uniform(0.0, 0.05))
    # The clock stops here: the system needs some time to free the memory.
    wall += time.monotonic() - begin
    process.kill()
    process.communicate()
  begin = time.monotonic()
  finish(run(killed))
  wall += time.monotonic() - begin
  expected, got = (final_arrays(w, steps) for w in (whole, killed))
  assert expected.keys() == got.keys()
  different = [k for k in expected if not np.array_equal(expected[k], got[k])]
  assert not different
  assert records(whole / 'log.jsonl') == records(killed / 'log.jsonl')
  assert records(whole / 'eval.jsonl') == records(killed / 'eval.jsonl')
  assert not [path for path in killed.rglob('*') if 'tmp' in path.name]
  # The kills at run.start and file.written come before their attempts are
  # recorded. The first recorded attempt is that with the kill at run.compile;
  # `wall` does not include it.
  spent = goodput.summary(goodput.read(killed))
  assert len(spent['attempts']) == 1 + num_kills + 1
  counted = sum(sum(a.values()) for a in spent['attempts'][1:])
  print(f'{wall:.2f} s by the clock, {counted:.2f} s in parts')
  assert counted == pytest.approx(wall, rel=share)
  assert spent['parts']['lost'] > 0
