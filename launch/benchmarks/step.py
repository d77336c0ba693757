"""Times whole training steps of the trainer's own program on random tokens."""

import argparse
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from launch.configs import configuration
from moe.evaluate.timing import Timed, clock, command, measure
from moe.planning import benchmark_devices as device_lib
from moe.planning import step_parts
from moe.runs import build
from moe.runs.counts import flops_of
from moe.runs.run import Run, optimizer_of
from moe.train.program import Program

FILES = (
  'models/small.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
)
# The model if no gin file is given. We timed other programs with this model.
# These programs do not normalise queries and keys, so ours does not either.
MACROS = {
  'VOCAB_SIZE': 8192,
  'D_MODEL': 256,
  'NUM_LAYERS': 4,
  'NUM_HEADS': 4,
  'NUM_KV_HEADS': 4,
  'HEAD_DIM': 64,
  'QK_NORM': False,
  'NUM_EXPERTS': 8,
  'TOP_K': 2,
  'EXPERT_D_FF': 512,
  'BATCH_SIZE': 16,
  'SEQUENCE_LENGTH': 128,
  'GROUP_SIZE': 1024,
  'TRAIN_STEPS': 1000,
  'LEARNING_RATE': 1e-3,
}
UNIT = 'training step'
# Steps per sample of our program when it is compared with another program. The
# other program also runs many steps per sample.
STEPS = 6


def load(
  args: argparse.Namespace, overrides: Sequence[str], **macros: Any
) -> Run:
  """Loads the run of the gin files, or of `MACROS` if there are none.

  `macros` are bindings of the comparison. They override those of the user.
  """
  sizes = {} if args.gin_file else MACROS
  bind = lambda given: [f'{name}={value}' for name, value in given.items()]
  return configuration.load(
    args.gin_file or FILES, [*bind(sizes), *overrides, *bind(macros)]
  )


def timed_step(name: str, run: Run, devices: Sequence, steps: int = 1) -> Timed:
  """Compiles the training step of a run, and gets it ready for timing.

  Args:
    name: name in the table.
    run: the run whose step is timed.
    devices: devices of the mesh.
    steps: steps per sample.
  """
  program = build.build(run, devices)
  program.train_step.compile(program.abstract, program.batch_shapes)
  batch = program.put(
    step_parts.random_batch(*run.data.shape, run.model.vocab_size)
  )
  held = [program.init()]

  def step():
    held[0], metrics = program.train_step(held[0], batch)
    return metrics

  sample = clock(step, steps)
  lost, rows = step().get('dropped', (np.zeros(1), np.ones(1)))
  return Timed(name, sample, float(np.sum(lost) / np.sum(rows)))


def compare_mesh(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Compares a step on 8 devices with a step on 1 device of this machine."""
  devices = device_lib.eight()
  run = load(args, overrides)
  share = run.data.batch_size * run.data.sequence_length // 8
  # A routing group must fit into an eighth of the batch, since it lies on one
  # device. The run on 1 device gets the same groups, so the work is equal.
  groups = {} if _binds(overrides, 'GROUP_SIZE') else {'GROUP_SIZE': share}
  programs = []
  for name, data, expert in (
    ('1 device', 1, 1),
    ('8 devices, data 2 x expert 4', 2, 4),
  ):
    run = load(
      args, overrides, **groups, MESH_DATA=data, MESH_EXPERT=expert
    )  # fmt: skip
    programs.append(timed_step(name, run, devices[: data * expert]))
  return measure(programs, args.rounds, UNIT, _tokens(run))


def compare_compile(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Compares the seconds to trace and compile a step: 64 experts against 8."""
  jax.config.update('jax_enable_compilation_cache', False)

  def seconds(experts: int) -> float:
    jax.clear_caches()
    run = load(args, overrides, NUM_EXPERTS=experts)
    return clock_once(build.build(run, jax.devices()))

  programs = [
    Timed(f'{n} experts', functools.partial(seconds, n)) for n in (8, 64)
  ]
  for program in programs:
    program.sample()  # Not counted, since the first sample includes imports.
  return measure(programs, args.rounds, 'compilation of the training step')


def compare_muon(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Compares steps with Muon and with AdamW, in time and in FLOPs."""
  files = args.gin_file or FILES
  with_muon = argparse.Namespace(gin_file=[*files, 'runs/muon.gin'])
  sizes = [] if args.gin_file else [f'{k}={v}' for k, v in MACROS.items()]
  muon = load(with_muon, [*sizes, *overrides])
  counts, _ = flops_of(muon, build.build(muon, jax.devices()))
  of_step = counts['flops_per_token_train']
  times = 1 + counts['flops_per_token_optimizer'] / of_step
  programs = [
    timed_step('AdamW', load(args, overrides), jax.devices()),
    timed_step(f'Muon, {times:.3f} times the FLOPs', muon, jax.devices()),
  ]
  return measure(programs, args.rounds, UNIT, _tokens(muon))


def compare_parts(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Compares the parts of a step with the whole step, on one device."""
  run, devices = load(args, overrides), jax.devices()[:1]
  batch = step_parts.random_batch(*run.data.shape, run.model.vocab_size)
  start = build.build(run, devices).init()
  parts = step_parts.timed(run.model, optimizer_of(run), start, batch)
  whole = timed_step('step', run, devices)
  return measure([whole, *parts], args.rounds, UNIT, _tokens(run))


def clock_once(program: Program) -> float:
  """Seconds to trace and compile the training step once."""
  start = time.perf_counter()
  step = program.train_step.lower(program.abstract, program.batch_shapes)
  step.compile()
  return time.perf_counter() - start


def compare_command(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Compares the tokens/s of our training step and of another program."""
  run = load(args, overrides)
  theirs = Timed('theirs', command(args.against, _tokens(run)))
  ours = timed_step('ours', run, jax.devices(), STEPS)
  return measure([theirs, ours], args.rounds, UNIT, _tokens(run), True)


COMPARISONS = {
  'mesh': compare_mesh, 'compile': compare_compile,
  'muon': compare_muon, 'parts': compare_parts,
}  # fmt: skip


def _tokens(run: Run) -> int:
  return run.data.batch_size * run.data.sequence_length


def _binds(overrides: Sequence[str], name: str) -> bool:
  return any(o.split('=')[0].strip() == name for o in overrides)


def compare(
  args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
  """Makes the report of the command `step`."""
  if args.against and args.compare:
    raise ValueError('--against and --compare exclude each other: drop one.')
  if args.against:
    report = compare_command(args, overrides)
  elif args.compare:
    report = COMPARISONS[args.compare](args, overrides)
  else:
    run = load(args, overrides)
    program = timed_step('training step', run, jax.devices())
    report = measure([program], args.rounds, UNIT, _tokens(run))
  return {**report, 'device': jax.devices()[0].device_kind}
