r"""Measures the project: python -m launch.bench VERB FLAGS.

imports   times the import of each module of moe, with jax, flax and optax
          already imported
moe       times one MoE layer, forward and backward, alone or against a variant
pairs     times the pair track of a folding block against AlphaFold's layers
draw      times a trained model that draws, with guidance against without it
step      times a training step, alone or against another step or program;
          --gin.NAME=VALUE as in launch.train
checkpoints
          times a save beside the steps of a model with 113 million parameters,
          the check of what was saved, and the start of new and resumed runs

imports moe.train.trainer --runs=9
moe --compare=einsum --experts=64
moe --compare=tpu                  (needs the package libtpu, but no TPU)
draw --checkpoint=runs/pictures --prompt=圖中是短靴
step --compare=mesh
step --compare=processes --rounds=3
step --against='python peer.py --length 512' --gin.SEQUENCE_LENGTH=512

In each round the compared programs run one after the other. The reported ratio
is the median of the ratios of all rounds.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import flags
from launch.later import Later
from moe.evaluate import timing
from moe.planning import import_times

configuration = Later('launch.configs.configuration')
layer_estimates = Later('moe.planning.layer_estimates')
pair_comparison = Later('moe.planning.pair_comparison')
drawing_speed = Later('moe.runs.drawing_speed')
picture_model = Later('moe.runs.picture_model')
runs = Later('launch.benchmarks.runs')
step = Later('launch.benchmarks.step')


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('bench', __doc__)
  add_verb = flags.add_verbs(parser)
  _imports_flags(add_verb('imports', 'seconds to import each module'))
  _moe_flags(add_verb('moe', 'one MoE layer'))
  pairs = add_verb('pairs', 'the pair track of a folding block')
  for name, size in (('length', 128), ('width', 32), ('heads', 0)):
    pairs.add_argument(f'--{name}', type=int, default=size)
  _shared_flags(pairs)
  draw = add_verb('draw', 'drawing with guidance against without it')
  flags.add_checkpoint_flag(draw)
  draw.add_argument('--prompt', required=True, help='the sentence to draw')
  draw.add_argument('--num', type=int, default=96, help='pictures at a time')
  draw.add_argument('--guidance', type=float, default=2.0, help='not 1')
  _shared_flags(draw)
  _step_flags(add_verb('step', 'whole training steps'))
  saves = add_verb('checkpoints', 'saves, checks and resumed runs')
  flags.add_gin_flags(saves, help='default: a model with 113M parameters')
  _shared_flags(saves)
  args, overrides = flags.parse(parser, argv)
  if overrides and not hasattr(args, 'gin_file'):
    parser.error(f'{args.verb} takes no --gin. flags; they are for step')
  return args, overrides


def _imports_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('modules', nargs='*', metavar='MODULE', help='default: all of moe')
  add('--runs', type=int, default=1, help='pairs of processes; default: 1')
  add('--json', action='store_true', help='one JSON object')


def _moe_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    '--compare',
    choices=(
      'mesh', 'einsum', 'dropless', 'parts', 'fine', 'dense', 'tpu', 'memory'
    ),
    help='mesh: 8 devices and 1; einsum: sorted and one-hot dispatch; dropless:'
    ' dropless dispatch and capacity; parts: the layer and the products of its'
    ' experts alone; fine: the same work in 4 and 16 times as many experts;'
    ' dense: the layer and a dense product of equal FLOPs; tpu: the work'
    " in 4 and 8 times as many experts, in seconds of the TPU's compiler;"
    ' memory: bytes of a layer on 32 TPU chips',
  )  # fmt: skip
  for name, text in (
    ('d_model', 'width of the model'),
    ('d_ff', 'width of each expert'),
    ('experts', 'number of experts'),
    ('top_k', 'experts per token'),
    ('tokens', 'number of tokens in all'),
    ('group_size', 'tokens per routing group, and per sequence'),
  ):
    add(f'--{name}', type=int, help=text)
  add('--capacity_factor', type=float, help='default: 1.25')
  add('--dtype', help='dtype of activations and experts')
  add('--dispatch', help='default: Sorted, but Dropless for --compare=dense')
  add('--exchange', help='class of the exchange; default: AllToAll')
  _shared_flags(parser)


def _step_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    '--compare',
    choices=('mesh', 'compile', 'muon', 'parts', 'processes'),
    help='mesh: 8 devices and 1; processes: runs of 2 processes and of 1, both'
    ' with 8 devices; compile: seconds to compile with 64 and with 8 experts;'
    ' muon: a step with Muon and one with AdamW; parts: the step and its parts',
  )
  add(
    '--against',
    metavar='COMMAND',
    help="a program that prints 'N tokens/s'; its highest N counts",
  )
  flags.add_gin_flags(
    parser,
    help='as in launch.train; default: a small model, see'
    ' launch/benchmarks/step.py',
  )
  _shared_flags(parser)


def _shared_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--rounds', type=int, default=10, help='samples of each; default: 10')
  add('--json', action='store_true', help='one JSON object')


def compare(
  args: argparse.Namespace, overrides: list[str], command: str
) -> int:
  """Runs a verb other than `imports`, and prints its report."""
  if args.rounds < 1:
    raise ValueError(f'--rounds={args.rounds} must be at least 1.')
  _set_environment(getattr(args, 'compare', None))
  runtime.keep_freed_memory()
  if args.verb == 'checkpoints':
    runs.show_checkpoints(args, overrides, command)
    return 0
  if args.verb == 'step' and args.compare == 'processes':
    report = runs.compare_processes(args, overrides)
  elif args.verb == 'step':
    report = step.compare(args, overrides)
  elif args.verb == 'draw':
    runtime.set_up_jax()
    model = picture_model.of_run(configuration.load_run(args.checkpoint))
    asked = args.prompt, args.num, args.guidance, args.rounds
    report = drawing_speed.compare(model, *asked)
  else:
    module = layer_estimates if args.verb == 'moe' else pair_comparison
    report = module.compare(args)
  timing.show(report, args.json, command)
  return 0


def _set_environment(comparison: str | None) -> None:
  """Sets the environment that a comparison needs, before JAX is imported."""
  if 'jax' in sys.modules:
    return
  if comparison == 'mesh':
    flag = ' --xla_force_host_platform_device_count=8'
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + flag
  if comparison in ('tpu', 'memory'):
    # Programs for TPUs are compiled but not run, so JAX needs no accelerator.
    os.environ['JAX_PLATFORMS'] = 'cpu'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; the exit code is 2 for an error that the user can fix."""
  command = runtime.command_line('bench', argv)

  def verb() -> int:
    args, overrides = parse(argv)
    if args.verb == 'imports':
      return import_times.compare(args, command)
    return compare(args, overrides, command)

  return runtime.run(verb)


if __name__ == '__main__':
  sys.exit(main())
