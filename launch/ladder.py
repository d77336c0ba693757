"""Shows when sparsity pays: python -m launch.ladder --gin_file=F --workdir=DIR.

--gin_file=gin_configs/runs/ladder_cpu.gin --experts=1,8,16,64 --seeds=3,1,3,1
--gin_file=F --arm='dense:DENSE_TWIN=True' --arm='shared:SHARED_D_FF=64'

An arm is one variant of the model. The command trains every arm at several
learning rates, then at the arm's best rate with several seeds. --seeds gives
the number of seeds, for all arms or for each arm. DIR/ladder.html and
DIR/ladder.json show held-out bits per character against tokens, and the gain
over the first arm with its standard error; DIR/ladder.svg has the curves alone.
If the command is stopped, it shows the runs that have ended, if these can be
compared. The same command goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags, written
from launch.later import Later
from moe import stop_signals

ladder_page = Later('moe.report.ladder_page')
arms = Later('moe.runs.arms')
ladder = Later('moe.runs.ladder')


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('ladder', __doc__)
  numbers = lambda kind: lambda text: [kind(n) for n in text.split(',')]
  tokens = lambda text: round(float(text))
  flags.add_gin_flags(parser, required=True)
  add = parser.add_argument
  add('--workdir', required=True, metavar='DIR', help='where all runs write')
  add(
    '--experts',
    type=numbers(int),
    default=[],
    metavar='N,N',
    help='an arm for each number of experts; 1 is the dense twin',
  )
  add(
    '--arm',
    action='append',
    default=[],
    metavar='NAME:BINDING;..',
    help='an arm by what it binds; may be given several times; warmup=SHARE,'
    ' among the bindings, sets the share of warm-up steps, by default 0.01',
  )
  add('--tokens', type=tokens, default=10_000_000, metavar='N')
  add('--sweep_tokens', type=tokens, default=2_000_000, metavar='N')
  add(
    '--seeds',
    type=numbers(int),
    default=[3],
    metavar='N,..',
    help='runs of every arm, or of each one, at its best rate; default 3',
  )
  add(
    '--learning_rates',
    type=numbers(float),
    default=[0.005, 0.01, 0.02],
    metavar='R,..',
    help='rates that each arm tries; one rate means no sweep',
  )
  text = 'runs beside each other; all of them must fit into the memory'
  add('--at_once', type=int, default=1, help=text)
  add('--json', action='store_true', help='print the JSON instead of a table')
  return flags.parse(parser, argv)


def climb(args: argparse.Namespace, overrides: list[str], command: str) -> int:
  """Trains the runs that are missing, and writes the page."""
  arms.check_free(overrides, 'a --gin. flag')
  compared = arms.arms(args.experts, args.arm, args.seeds)
  read = lambda own: configuration.load(args.gin_file, [*overrides, *own])
  runs = arms.load(compared, read)
  expansions = {name: arms.expansion(run.model) for name, run in runs.items()}
  data = runs[compared[0].name].data
  plan = ladder.Ladder(
    compared,
    tuple(args.learning_rates),
    args.tokens,
    args.sweep_tokens,
    data.batch_size * data.sequence_length,
    at_once=args.at_once,
  )
  train = [sys.executable, '-m', 'launch.train']
  train += [f'--gin_file={file}' for file in args.gin_file]
  flags_of = lambda own: [f'--gin.{b}' for b in (*overrides, *own)]
  found = ladder.run(plan, lambda own: train + flags_of(own), args.workdir)
  summary, page = ladder_page.report(
    found, written.seed_and_tasks, expansions, command, args.workdir
  )
  text = json.dumps(summary, ensure_ascii=False)
  print(text if args.json else ladder_page.as_text(summary))
  runtime.log(f'page: {page}')
  return stop_signals.EXIT_STOPPED if found.missing else 0


def main(argv: Sequence[str] | None = None) -> int:
  """Shows the ladder; the exit code is 2 for an error the user can fix."""
  command = runtime.command_line('ladder', argv)
  return runtime.run(lambda: climb(*parse(argv), command))


if __name__ == '__main__':
  sys.exit(main())
