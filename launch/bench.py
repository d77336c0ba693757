r"""Measures the project: python -m launch.bench imports|moe|step.

imports   seconds that each module of moe takes beyond jax, flax and optax
moe       one MoE layer, forward and backward, alone or against others like it
step      a training step, alone, on 8 devices against 1, or against a program
          of other people; --gin.NAME=VALUE as in launch.train

imports moe.train.trainer --runs=9
moe --compare=einsum --experts=64
moe --compare=tpu                  (needs no TPU, but the package libtpu)
step --compare=mesh
step --against='python peer.py --length 512' --gin.SEQUENCE_LENGTH=512

What is compared runs in turns, one after the other in each round; ratios are
medians over rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import flags

BASE = 'import jax, flax, optax'
TIMED = (
  'import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)'
)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Command-line flags, and what --gin. flags bind."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.bench',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  imports = verbs.add_parser('imports', help='seconds to import each module')
  imports.add_argument(
    'modules', nargs='*', metavar='MODULE', help='default: all modules of moe'
  )
  imports.add_argument(
    '--runs', type=int, default=1, help='pairs of processes each; default: 1'
  )
  imports.add_argument('--json', action='store_true', help='one JSON object')
  _moe_flags(verbs.add_parser('moe', help='one MoE layer'))
  _step_flags(verbs.add_parser('step', help='whole training steps'))
  args, overrides = flags.parse(parser, argv)
  if overrides and args.verb != 'step':
    parser.error(f'{args.verb} takes no --gin. flags; they are for step')
  return args, overrides


def _moe_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    '--compare',
    choices=(
      'mesh', 'einsum', 'dropless', 'parts', 'fine', 'dense', 'tpu', 'memory'
    ),
    help='mesh: 8 devices against 1; einsum: sorted against one-hot products;'
    ' dropless: against capacity; parts: against the products of its experts'
    ' alone; fine: the same work in 4 and 16 times as many experts; dense:'
    ' against a plain product of equally many FLOPs; tpu: fine, by the seconds'
    " of the TPU's compiler; memory: bytes of a layer on 32 TPU chips",
  )  # fmt: skip
  for name, text in (
    ('d_model', 'width of the model'),
    ('d_ff', 'width of each expert'),
    ('experts', 'how many'),
    ('top_k', 'experts per token'),
    ('tokens', 'in all'),
    ('group_size', 'tokens per routing group, and per sequence'),
  ):
    add(f'--{name}', type=int, help=text)
  add('--capacity_factor', type=float, help='default: 1.25')
  add('--dtype', help='of activations and experts')
  add('--dispatch', help='class; default: Sorted, and Dropless for dense')
  add('--exchange', help='class; default: AllToAll')
  _shared_flags(parser)


def _step_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    '--compare',
    choices=('mesh', 'compile'),
    help='mesh: 8 devices against 1; compile: seconds to compile with 64'
    ' experts against 8',
  )
  add(
    '--against',
    metavar='COMMAND',
    help="a program that prints 'N tokens/s', the best of which counts",
  )
  flags.add_gin_flags(
    parser,
    help='as in launch.train; default: a small model, see launch/step.py',
  )
  _shared_flags(parser)


def _shared_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--rounds', type=int, default=10, help='samples of each; default: 10')
  add('--json', action='store_true', help='one JSON object')


def modules() -> list[str]:
  """Every module of moe."""
  root = pathlib.Path(__file__).parents[1]
  paths = sorted((root / 'moe').rglob('*.py'))
  names = [p.relative_to(root).with_suffix('').as_posix() for p in paths]
  return [n.replace('/', '.') for n in names if not n.endswith('__init__')]


def seconds(statement: str) -> float:
  """Of the statement alone, in a fresh process."""
  command = [sys.executable, '-c', TIMED.format(statement)]
  done = subprocess.run(command, capture_output=True, check=True)
  return float(done.stdout)


def beyond(module: str) -> float:
  """Seconds that a module takes beyond the base, measured right before it."""
  base = seconds(BASE)
  return seconds(f'import {module}') - base


def imports(args: argparse.Namespace) -> int:
  """The verb `imports`: each module in turns with the base it is held to."""
  if args.runs < 1:
    raise ValueError(f'--runs={args.runs} must be at least 1.')
  known = modules()
  if unknown := [name for name in args.modules if name not in known]:
    raise ValueError(f'{unknown[0]} must be a module of moe, as {known[0]} is.')
  rows = {}
  for module in args.modules or known:
    rows[module] = statistics.median(beyond(module) for _ in range(args.runs))
    if not args.json:
      print(f'{rows[module]:+7.2f} s  {module}', flush=True)
  worst = max(rows, key=rows.get)
  if args.json:
    print(json.dumps({'seconds': rows, 'worst': worst}))
  else:
    print(f'worst: {worst}, {rows[worst]:+.2f} s beyond `{BASE}`')
  return 0


def measured(args: argparse.Namespace, overrides: list[str]) -> int:
  """The verbs `moe` and `step`."""
  if args.compare == 'mesh' and 'jax' not in sys.modules:
    # Has to be there before jax looks for devices.
    flag = ' --xla_force_host_platform_device_count=8'
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + flag
  if args.compare in ('tpu', 'memory') and 'jax' not in sys.modules:
    # A TPU's program is only compiled: no device of this machine is touched.
    os.environ['JAX_PLATFORMS'] = 'cpu'
  from launch.benchmarks import pairs

  runtime.keep_freed_memory()

  if args.rounds < 1:
    raise ValueError(f'--rounds={args.rounds} must be at least 1.')
  if args.verb == 'step':
    from launch.benchmarks import step

    report = step.step(args, overrides)
  elif args.compare in ('tpu', 'memory'):
    from launch.benchmarks import tpu

    report = tpu.compiled(args)
  else:
    from launch.benchmarks import moe

    report = moe.moe(args)
  pairs.show(report, args.json)
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; 2 for what the user can mend, with one sentence on how."""
  args, overrides = parse(argv)
  try:
    if args.verb == 'imports':
      return imports(args)
    return measured(args, overrides)
  except ValueError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
