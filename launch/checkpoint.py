"""Checkpoints of a run: python -m launch.checkpoint VERB DIR.

DIR is the directory of a run, its folder `checkpoints`, or the folder of one
step inside `checkpoints`. `rewind` needs the directory of a run.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import flags
from launch.later import Later

contents = Later('moe.runs.contents')
rewind = Later('moe.runs.rewind')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('checkpoint', __doc__)
  add_verb = flags.add_verbs(parser)
  for verb, text in (
    ('list', 'list steps with sizes and metrics, and mark the best step'),
    ('verify', 'read every byte and open every array; exit code 1 for damage'),
    ('show', 'print what was recorded with a step'),
  ):
    sub = add_verb(verb, text)
    sub.add_argument('directory', metavar='DIR')
    if verb != 'list':
      which = 'all' if verb == 'verify' else 'the newest'
      sub.add_argument('--step', type=int, help=f'default: {which}')
    if verb == 'verify':
      sub.add_argument(
        '--untrusted',
        action='store_true',
        help='look for links, paths and sizes that could do harm, before'
        ' anything is read',
      )
  text = 'make an earlier step the newest, so that the run goes on from it'
  sub = add_verb('rewind', text)
  sub.add_argument('directory', metavar='DIR', help='directory of the run')
  sub.add_argument('--to', type=int, required=True, metavar='STEP')
  sub.add_argument(
    '--skip',
    type=_steps,
    metavar='A:B',
    help='leave out the batches of the logged steps A to B - 1',
  )
  return parser.parse_args(argv)


def _steps(text: str) -> tuple[int, int]:
  first, end = map(int, text.split(':'))
  return first, end


def inspect(options: argparse.Namespace) -> int:
  """Runs the subcommand; the exit code is 1 if it finds a damaged file."""
  if options.verb == 'rewind':
    rewind.rewind(options.directory, options.to, options.skip)
    return 0
  step = getattr(options, 'step', None)
  directory, steps = contents.chosen(options.directory, step)
  if options.verb == 'list':
    print(contents.as_table(contents.listed(directory)))
    return 0
  if options.verb == 'show':
    print(contents.recorded(directory, steps[-1]))
    return 0
  code = 0
  for step, problems in contents.damage(directory, steps, options.untrusted):
    if not problems:
      print(f'step {step}: sound')
    for problem in problems:
      code = 1
      runtime.log(f'step {step}: {problem}')
  return code


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; exit code: 1 for a damaged file, 2 for a user's mistake."""
  return runtime.run(lambda: inspect(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
