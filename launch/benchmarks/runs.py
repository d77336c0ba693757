"""Times whole runs: several processes, background saves, a resumed run."""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from launch.benchmarks import step as step_lib
from moe.checkpoint import restore
from moe.checkpoint.save import Checkpointer
from moe.evaluate.score import Score, as_table
from moe.evaluate.timing import Timed, measure
from moe.planning import step_parts
from moe.runs import build
from moe.train import goodput, record_log

ROOT = pathlib.Path(__file__).parents[2]
QUICK = 'runs/quickstart.gin'
# With these bindings the quick start scores nothing, writes no samples, and
# saves only its last step.
_BARE = ['EVAL_TASKS=()', 'PROMPTS=()', 'SAVE_PERIOD=1000000']
_STEPS = 30
# The first steps are slower, for example because memory is allocated.
_WARM = 5
# A model with 113 million parameters, 101 million of them in experts.
LARGE = step_lib.MACROS | {
  'D_MODEL': 512,
  'NUM_LAYERS': 8,
  'NUM_HEADS': 8,
  'NUM_KV_HEADS': 8,
  'EXPERT_D_FF': 1024,
  'BATCH_SIZE': 4,
  'GROUP_SIZE': 128,
}
# The report gives the cost of a save as a share of this time between saves.
_SAVE_SECONDS = 60.0


def compare_processes(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Compares 2 processes of 4 CPU devices with 1 process of 8."""
  flags = [f'--gin_file={name}' for name in args.gin_file or [QUICK]]
  given = [*_BARE, f'TRAIN_STEPS={_STEPS}', *overrides]
  flags += [f'--gin.{binding}' for binding in given]

  def sample(num_processes: int) -> Callable[[], float]:
    return lambda: _step_seconds(flags, num_processes, 8 // num_processes)

  programs = [
    Timed('1 process with 8 devices', sample(1)),
    Timed('2 processes with 4 devices', sample(2)),
  ]
  return measure(programs, args.rounds, 'training step')


def _step_seconds(
  flags: Sequence[str], num_processes: int, num_devices: int
) -> float:
  """Median seconds of a step of a new run, without its first `_WARM` steps."""
  with tempfile.TemporaryDirectory() as workdir:
    _train([*flags, f'--workdir={workdir}'], num_processes, num_devices)
    log = record_log.read(os.path.join(workdir, 'log.jsonl'))
    return statistics.median(r['time']['seconds'] for r in log[_WARM:])


def _train(
  flags: Sequence[str], num_processes: int = 1, num_devices: int = 8
) -> None:
  """Runs launch.train in processes of one program; ValueError if one fails."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  running = []
  for number in range(num_processes):
    own = {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(num_devices)}
    if num_processes > 1:
      own |= {
        'NUM_PROCESSES': str(num_processes),
        'PROCESS_ID': str(number),
        'JAX_COORDINATOR_ADDRESS': address,
      }
    process = subprocess.Popen(
      [sys.executable, '-m', 'launch.train', *flags],
      cwd=ROOT,
      env=os.environ | own,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    running.append(process)
  errors = [process.communicate()[1] for process in running]
  for process, error in zip(running, errors, strict=True):
    if process.returncode:
      last = (error.strip() or 'no message').split('\n')[-1]
      raise ValueError(f'a run must succeed, got {last}')


def show_checkpoints(
  args: argparse.Namespace, overrides: Sequence[str], command: str
) -> None:
  """Prints the cost of a save, the speed of a check, and the time to resume."""
  scores = [*_saved(args, overrides, command), *_resumed(command)]
  if args.json:
    print(json.dumps({'scores': [score.as_json() for score in scores]}))
  else:
    print(as_table(scores))


def _saved(
  args: argparse.Namespace, overrides: Sequence[str], command: str
) -> list[Score]:
  """Times steps alone, steps beside a save, and the check of what is saved."""
  sizes = {} if args.gin_file else LARGE
  given = [f'{name}={value}' for name, value in sizes.items()]
  run = step_lib.load(args, [*given, *overrides])
  program = build.build(run, jax.devices()[:1])
  program.train_step.compile(program.abstract, program.batch_shapes)
  batch = program.put(
    step_parts.random_batch(*run.data.shape, run.model.vocab_size)
  )
  ts = program.init()

  def step_seconds() -> float:
    nonlocal ts
    begin = time.perf_counter()
    ts, metrics = program.train_step(ts, batch)
    jax.block_until_ready((ts, metrics))
    return time.perf_counter() - begin

  step_seconds()
  alone = statistics.median(step_seconds() for _ in range(args.rounds))
  with tempfile.TemporaryDirectory() as folder:
    saver = Checkpointer(os.path.join(folder, 'checkpoints'))
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(ts))
    begin, taken = time.perf_counter(), 0.0
    saver.save(1, ts, {})
    blocked = time.perf_counter() - begin
    while saver.is_saving:
      taken += step_seconds() - alone
    seconds = time.perf_counter() - begin
    saver.close()
    begin = time.perf_counter()
    problems = restore.damage(saver.directory / '1')
    checked = time.perf_counter() - begin
    assert not problems, problems
  megabytes = num_bytes / 1e6
  lost = (blocked + max(taken, 0.0)) / _SAVE_SECONDS
  rows = [
    ('size of the checkpoint', megabytes, 'MB', False),
    ('training step without a save', alone, 'seconds', False),
    ('time that the loop waits for a save', blocked, 'seconds', False),
    ('time until the step is committed', seconds, 'seconds', False),
    ('share of the steps, at one save a minute', lost, 'share', False),
    ('launch.checkpoint verify', megabytes / checked, 'MB/s', True),
  ]
  return [
    Score(name, value, None, None, 1, command, unit, is_higher_better)
    for name, value, unit, is_higher_better in rows
  ]


def _resumed(command: str) -> list[Score]:
  """Times the start of a new run, and of runs resumed at two steps."""
  scores, last = [], 0
  # With one schedule for all, only the first run compiles the step.
  given = [*_BARE, 'schedules.wsd.train_steps=1000']
  bare = [f'--gin_file={QUICK}', *(f'--gin.{binding}' for binding in given)]
  with tempfile.TemporaryDirectory() as first:
    _train([*bare, '--gin.TRAIN_STEPS=30', f'--workdir={first}'])
  with tempfile.TemporaryDirectory() as workdir:
    for steps in (30, 32, 200, 202):
      _train([*bare, f'--gin.TRAIN_STEPS={steps}', f'--workdir={workdir}'])
      spent = goodput.read(workdir)[-1]
      seconds = spent['loading'] + spent['compiling']
      name = f'resumed at step {last}' if last else 'new run'
      text = f'start of the quick start, {name}'
      if steps != 200:
        scores.append(
          Score(text, seconds, None, None, 1, command, 'seconds', False)
        )
      last = steps
  return scores
