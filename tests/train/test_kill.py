"""A run that is killed at any named place ends as if nothing had happened.

`toy_run` makes the attempts. tests/launch/test_kill.py kills a run with real
data at random times, and at the places that `toy_run` does not reach.
"""

import hashlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moe import failpoints
from moe.train import record_log

ROOT = pathlib.Path(__file__).parents[2]
SAVE_PERIOD = 3
# The first request ends an evaluation by a signal, so the next attempt has to
# repeat this evaluation. The other two requests kill an attempt during this
# repetition.
LATE = ['run.evaluate=term', 'late.written=kill', 'run.score=kill']
FEW = [
  'save.arrays=kill',
  'commit.hashed=kill@2',
  'commit.visible=kill',
  'remove.half=kill',
  'log.append=kill@2',
]
# A signal while a step runs, while a save is written, and while a read hangs.
TERM = [
  'run.step=term@2',
  'commit.sealed=term',
  'run.read=term@3,run.read=hang@4',
]
# A read and an evaluation that never end.
HANG = ['run.read=hang@3', 'run.evaluate=hang']
REST = LATE + TERM + HANG
EXIT_HUNG = 70
# `toy_run` is not a command of `launch`, so it does not reach these places.
NOT_HERE = {'run.start', 'run.compile'}
IN_LATE = {request.partition('=')[0] for request in LATE}
ALL = [
  f'{place}=kill{count}'
  for count in ('', '@2')
  for place in failpoints.PLACES
  if place not in NOT_HERE | IN_LATE and not (count and place == 'file.written')
]


def attempts(workdir, steps, requests):
  """Runs `toy_run`; returns its record of each attempt."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.train.toy_run', workdir, str(steps)]
    + requests,
    cwd=ROOT,
    env={
      **os.environ,
      'JAX_NUM_CPU_DEVICES': '1',
      # The threads of OpenBLAS would not survive a fork.
      'OPENBLAS_NUM_THREADS': '1',
      'JAX_COMPILATION_CACHE_DIR': str(workdir / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    },
    stdout=subprocess.PIPE,
    check=True,
  )
  return [json.loads(line) for line in done.stdout.splitlines()]


def fingerprint(workdir, steps):
  """SHA-256 of each array of the last step, and of both logs without times."""
  tree = ocp.PyTreeCheckpointer().restore(
    workdir / 'checkpoints' / str(steps) / 'state'
  )
  found = {
    jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).data)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
  for name in ('log.jsonl', 'eval.jsonl'):
    records = record_log.read(workdir / name)
    for record in records:
      record.pop('time', None)
    found[name] = hashlib.sha256(json.dumps(records).encode())
  return {name: digest.hexdigest() for name, digest in found.items()}


@pytest.mark.parametrize(
  ('steps', 'requests'),
  [
    pytest.param(36, FEW + REST, id='few', marks=pytest.mark.slow),
    pytest.param(150, ALL + REST, id='all', marks=pytest.mark.nightly),
  ],
)
def test_a_run_killed_at_named_places_equals_an_unbroken_one(
  tmp_path, steps, requests
):
  found = attempts(tmp_path, steps, requests)
  *broken, last, unbroken = found
  codes = {r['request']: r['code'] for r in broken}
  assert codes == {
    **dict.fromkeys(requests, -signal.SIGKILL),
    **dict.fromkeys(HANG, EXIT_HUNG),
    **dict.fromkeys([LATE[0], *TERM], 75),
  }
  for attempt, after in itertools.pairwise([*broken, last]):
    if attempt['code'] == 75:  # The step in which the signal came is saved.
      assert after['redone'] == 0
      assert attempt['seconds'] < 25
  assert last['code'] == unbroken['code'] == 0
  assert fingerprint(tmp_path, steps) == fingerprint(
    tmp_path / 'unbroken', steps
  )
  # No attempt finds temporary files of an earlier attempt.
  assert [r['left'] for r in found] == [[]] * len(found)
  # A kill loses one period, and the steps that ran during the save that it has
  # cut off. The next save waits for this save, so these are at most a period.
  during = [r['redone_during_save'] for r in found]
  assert max(during) <= SAVE_PERIOD
  before_save = [r['redone'] - r['redone_during_save'] for r in found]
  assert max(before_save) <= SAVE_PERIOD
