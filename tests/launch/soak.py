"""A long run that breaks in many ways, with a supervisor that restarts it.

python -m tests.launch.soak DIR [STEPS FIRST LAST SLEEP]
SOAK_FLAGS="--gin.TASK=\"'poems_shi'\"" python -m tests.launch.soak DIR

The run in `DIR/工作 目录` meets each fault of `FAULTS` once, between FIRST and
LAST seconds after a new step. DIR/whole is the same run without faults. The
broken run reads a batch in SLEEP seconds, so that it lasts long enough.
SOAK_FLAGS has more flags for both, such as those of another corpus. The last
line of the output says whether both runs are equal.

A full disk ends the supervisor, too. Then the script starts it again, as a
person does who has freed some space. The clock of each attempt is an hour
behind the clock of the previous attempt.
"""

import hashlib
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from launch import train
from moe import failpoints
from moe.checkpoint import listing
from moe.data import reader
from moe.runs import supervise
from moe.train import record_log
from tests.launch import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [
  *tiny_run.FLAGS,
  '--gin.SAVE_PERIOD=5',
  '--gin.EVAL_PERIOD=10',
  '--gin.HANG_SECONDS=60.0',
  *shlex.split(os.environ.get('SOAK_FLAGS', '')),
]
SIGNALS = {
  'kill': signal.SIGKILL,
  'terminate': signal.SIGTERM,
  'interrupt': signal.SIGINT,
  'hang up': signal.SIGHUP,
  'crash': signal.SIGSEGV,
}
# Signals, requests of `moe.failpoints`, and the functions below by name.
FAULTS = [
  *SIGNALS,
  'kill',
  'kill',
  'pause',
  'second run',
  'flip',
  'truncate',
  'delete',
  'save.arrays=kill',
  'commit.hashed=kill',
  'commit.visible=kill',
  'remove.half=kill',
  'log.append=kill',
  'run.evaluate=term',
  'run.read=hang',
  'save.written=ENOSPC',
]
# After these faults the attempt goes on.
HARMLESS = ['pause', 'second run']
PAUSE_SECONDS = 8


def attempt(folder, fault_file, argv):
  """Trains in this process, and causes the next faults of a file."""
  quick, sleep = reader.Reader.batch, float(os.environ['SOAK_SLEEP'])

  def batch(self, step):
    time.sleep(sleep)
    return quick(self, step)

  reader.Reader.batch = batch
  set_back(len(json_lines(pathlib.Path(folder, supervise.LOG))))
  arguments = pathlib.Path(folder), pathlib.Path(fault_file)
  threading.Thread(target=cause, args=arguments, daemon=True).start()
  return train.main(argv)


def set_back(hours):
  """Sets the clock of this process back."""
  real = time.time
  time.time = lambda: real() - 3600.0 * hours


def cause(workdir, faults):
  """Causes faults until it has caused one that is not in `HARMLESS`."""
  while faults_left(faults) and cause_next(workdir, faults) in HARMLESS:
    pass


def faults_left(path):
  return json.loads(path.read_text()) if path.exists() else []


def cause_next(workdir, faults):
  """Causes the next fault after a new step and a delay; returns the fault."""
  before = last_step(workdir)
  while last_step(workdir) <= before:
    time.sleep(0.1)
    before = min(before, last_step(workdir))  # A resumed run cuts off its log.
  (fault, delay), *rest = faults_left(faults)
  time.sleep(delay)
  faults.write_text(json.dumps(rest))
  print(f'fault: {fault} after step {last_step(workdir)}', flush=True)
  if fault in SIGNALS:
    os.kill(os.getpid(), SIGNALS[fault])
  elif '=' in fault:
    os.environ[failpoints.VARIABLE] = fault
  else:
    OTHERS[fault](workdir)
  return fault


def last_step(workdir):
  log = record_log.read(workdir / 'log.jsonl')
  return log[-1]['step'] if log else 0


def pause(_):
  """Stops this process; a child continues it after PAUSE_SECONDS."""
  words = f'sleep {PAUSE_SECONDS}; kill -CONT {os.getpid()}'
  subprocess.Popen(['sh', '-c', words])
  os.kill(os.getpid(), signal.SIGSTOP)


def second_run(workdir):
  """Starts a run in the same directory, which must be refused."""
  command = [sys.executable, '-m', 'launch.train', *FLAGS]
  command += ['--gin.TRAIN_STEPS=9999', f'--workdir={workdir}']
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )
  is_refused = done.returncode == 2 and str(os.getpid()) in done.stderr
  print(f'second run refused: {is_refused}', flush=True)
  if not is_refused:
    print(done.stderr, flush=True)
    os._exit(2)  # The supervisor ends, and the test fails.


def damage(how):
  """A function that damages a file of the newest step, and kills the run."""

  def fault(workdir):
    steps = workdir / 'checkpoints'
    newest = steps / str(listing.steps(steps)[-1])
    files = [p for p in newest.rglob('*') if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    if how == 'delete':
      path.unlink()
    else:
      content = bytearray(path.read_bytes())
      middle = len(content) // 2
      content[middle] ^= 1
      path.write_bytes(content[: middle if how == 'truncate' else None])
    os.kill(os.getpid(), signal.SIGKILL)

  return fault


OTHERS = {
  'pause': pause,
  'second run': second_run,
  **{how: damage(how) for how in ('flip', 'truncate', 'delete')},
}


def fingerprint(workdir, steps):
  """SHA-256 of all arrays of the last step and of both logs without times."""
  # JAX reads the environment when it is imported, and `soak` sets it first.
  import jax
  import orbax.checkpoint as ocp

  path = workdir / 'checkpoints' / str(steps) / 'state'
  tree = ocp.PyTreeCheckpointer().restore(path)
  digest = hashlib.sha256()
  for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    digest.update(jax.tree_util.keystr(key).encode())
    digest.update(np.ascontiguousarray(leaf).data)
  for name in ('log.jsonl', 'eval.jsonl'):
    for record in record_log.read(workdir / name):
      record.pop('time', None)
      digest.update(json.dumps(record).encode())
  return digest.hexdigest()


def supervised(workdir, faults, steps):
  """Runs the command under `launch.supervise` until it has finished."""
  command = [sys.executable, '-m', 'tests.launch.soak', 'attempt']
  command += [str(workdir), str(faults), *FLAGS]
  command += [f'--gin.TRAIN_STEPS={steps}', f'--workdir={workdir}']
  limits = ['--first_wait=1', '--crashes_per_hour=99']
  words = [sys.executable, '-m', 'launch.supervise', *limits, '--', *command]
  starts = 0
  while starts < 1 + FAULTS.count('save.written=ENOSPC'):
    starts += 1
    code = subprocess.run(words, cwd=ROOT, check=False).returncode
    print(f'the supervisor has ended with code {code}', flush=True)
    if code == 0:
      return
  raise SystemExit(f'the run has not finished: {shlex.join(words)}')


def soak(folder, steps=300, first=5.0, last=60.0, sleep=2.5):
  """Makes both runs, and returns whether they are equal."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  os.environ |= {
    'SOAK_SLEEP': str(sleep),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    'WUDAO_CACHE': str(folder / 'cache'),
  }
  rng = random.Random(0)
  order = rng.sample(FAULTS, len(FAULTS))
  faults = folder / 'faults.json'
  faults.write_text(
    json.dumps([(fault, round(rng.uniform(first, last), 1)) for fault in order])
  )
  broken, whole = folder / '工作 目录', folder / 'whole'
  supervised(broken, faults, steps)
  left = faults_left(faults)
  os.environ['SOAK_SLEEP'] = '0'
  supervised(whole, folder / 'none.json', steps)
  attempts = json_lines(broken / 'attempts.jsonl')
  prints = [fingerprint(workdir, steps) for workdir in (broken, whole)]
  temporary = [str(p) for p in broken.rglob('*') if 'tmp' in p.name]
  summary = {
    'steps': steps,
    'faults': len(FAULTS) - len(left),
    'attempts': len(attempts),
    'codes': [a['code'] for a in attempts],
    'outcomes': [a['outcome'] for a in attempts],
    'sha256': prints[0][:16],
    'is_equal': prints[0] == prints[1] and not temporary and not left,
  }
  print(json.dumps(summary), flush=True)
  return summary


def json_lines(path):
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def main(argv):
  if argv[0] == 'attempt':
    return attempt(argv[1], argv[2], argv[3:])
  steps = [int(n) for n in argv[1:2]]
  return 0 if soak(argv[0], *steps, *map(float, argv[2:]))['is_equal'] else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
