"""Kills a small run (`toy`) again and again; each attempt is a process.

python -m tests.train.toy_run DIR STEPS REQUEST... makes one attempt for each
request, such as 'commit.sealed=kill', and one more attempt without a request.
Every attempt resumes the run of the attempt before. At the end there is an
unbroken run in DIR/unbroken. The output has a line of JSON for each attempt.

The attempts are forks of this process, so the slow imports happen only once.
"""

import contextlib
import io
import json
import os
import sys
import time
from unittest import mock

from moe import atomic_files, failpoints
from moe.checkpoint.save import Checkpointer
from moe.train import progress as progress_lib
from moe.train import record_log, trainer
from moe.train.evaluation import HeldOut
from tests.train import toy

# Steps take longer than saves, as they do in a real run.
STEP_SECONDS = 0.02


class Reader:
  """Batches by step."""

  facts = {'chars_per_token': 1.5}
  quarantine = ()

  def batch(self, step):
    time.sleep(STEP_SECONDS)
    return toy.make_batch(step)


def settings_of(steps):
  return trainer.Settings(
    steps, eval_period=4, save_period=3, keep_last=2, hang_seconds=5.0
  )


def train(workdir, settings, told=lambda step: None):
  """Starts or resumes a run; returns its exit code."""
  program = toy.make_toy_program(toy.make_objective())
  os.makedirs(workdir, exist_ok=True)
  atomic_files.sweep(workdir)
  checkpointer = Checkpointer(
    os.path.join(workdir, 'checkpoints'),
    settings.keep_last,
    settings.keep_best,
    'bits_per_char',
  )
  ts = program.init()
  if checkpointer.latest_step() is not None:
    ts, _ = checkpointer.restore(None, program.abstract)
  told(int(ts.step))
  atomic_files.write_file(os.path.join(workdir, 'config.gin'), 'toy')
  progress = progress_lib.Progress(
    workdir,
    program.objective,
    settings.train_steps,
    int(ts.step),
    stream=io.StringIO(),
  )
  score = program.objective.score
  batches = lambda: map(toy.make_batch, (100, 101))
  evaluation = HeldOut(batches, score, {'chars': 80})
  with contextlib.closing(progress), contextlib.closing(checkpointer):
    _, code = trainer.train(
      settings,
      program,
      Reader(),
      {'held_out': evaluation},
      checkpointer,
      progress,
      {'seed': 0},
      ts,
    )
  return code


def left_behind(workdir):
  """Temporary files and directories that a killed attempt has left."""
  return [
    name
    for folder, folders, files in os.walk(workdir)
    for name in (*folders, *files)
    if 'tmp' in name
  ]


def unfinished_saves(workdir):
  """Steps of the temporary directories of checkpoints."""
  folder = os.path.join(workdir, 'checkpoints')
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return [int(name.split('.')[0]) for name in names if 'tmp' in name]


def attempt(workdir, steps, request):
  """Makes one attempt in a fork; returns its entry for the output."""
  before = record_log.read(os.path.join(workdir, 'log.jsonl'))
  unfinished = unfinished_saves(workdir)
  read, write = os.pipe()
  begin = time.monotonic()
  process = os.fork()
  if not process:
    os.environ[failpoints.VARIABLE] = request
    if not request:
      del os.environ[failpoints.VARIABLE]

    def told(step):
      told = {'start': step, 'left': left_behind(workdir)}
      os.write(write, json.dumps(told).encode())

    with open(os.path.join(workdir, 'stderr.txt'), 'w') as errors:
      os.dup2(errors.fileno(), 2)
      os._exit(train(workdir, settings_of(steps), told))
  os.close(write)
  _, status = os.waitpid(process, 0)
  seconds = time.monotonic() - begin
  with os.fdopen(read) as pipe:
    told = json.loads(pipe.read())
  last = before[-1]['step'] if before else 0
  # An old step that was being removed has a temporary directory, too.
  cut_off = min((s for s in unfinished if s > told['start']), default=last)
  return {
    'request': request,
    'code': os.waitstatus_to_exitcode(status),
    'seconds': seconds,
    **told,
    'redone': last - told['start'],
    'redone_during_save': last - cut_off,
  }


def main(workdir, steps, *requests):
  """Makes all attempts, then an unbroken run; prints a record of each."""
  os.makedirs(workdir, exist_ok=True)
  # Nothing reads the event files, and their writer takes seconds to import.
  with mock.patch.object(progress_lib._Board, '_open'):
    for request in (*requests, ''):
      print(json.dumps(attempt(workdir, int(steps), request)), flush=True)
    unbroken = os.path.join(workdir, 'unbroken')
    os.makedirs(unbroken)
    print(json.dumps(attempt(unbroken, int(steps), '')), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
