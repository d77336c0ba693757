"""Checkpoints of a run: python -m launch.checkpoint VERB DIR.

DIR is the directory of a run, its folder `checkpoints`, or the folder of one
step inside `checkpoints`.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence

from launch import runtime

EXIT_DAMAGED = 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('checkpoint', __doc__)
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  for verb, text in (
    ('list', 'list steps with sizes and metrics, and mark the best step'),
    ('verify', 'read every byte and open every array; exit code 1 for damage'),
    ('show', 'print what was recorded with a step'),
  ):
    sub = verbs.add_parser(verb, help=text, description=text)
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
  sub = verbs.add_parser('rewind', help=text, description=text)
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
  """Runs the verb; the exit code is 1 if it finds a damaged file."""
  # Here, since Orbax takes seconds to import, and --help does not need Orbax.
  from moe.runs import contents, rewind

  if options.verb == 'rewind':
    rewind.rewind(options.directory, options.to, options.skip)
    return 0
  step = getattr(options, 'step', None)
  directory, steps = contents.chosen(options.directory, step)
  if options.verb == 'list':
    return _print_steps(contents.listed(directory))
  if options.verb == 'verify':
    return _print_damage(contents.damage(directory, steps, options.untrusted))
  return _print_record(*contents.recorded(directory, steps[-1]))


def _print_steps(steps: Sequence) -> int:
  print(f'{"step":>10} {"size":>10}  metrics')
  for listed in steps:
    remarks = [f'{name}={value:.4g}' for name, value in listed.metrics.items()]
    remarks += ['(best)'] if listed.is_best else []
    if listed.is_damaged:
      remarks = ['(damaged)']
    size = f'{listed.bytes / 2**20:>6.1f} MiB'
    print(f'{listed.step:>10} {size}  {" ".join(remarks)}'.rstrip())
  return 0


def _print_damage(found: Iterable[tuple[int, list[str]]]) -> int:
  code = 0
  for step, problems in found:
    if not problems:
      print(f'step {step}: sound')
    for problem in problems:
      code = EXIT_DAMAGED
      print(f'step {step}: {problem}', file=sys.stderr)
  return code


def _print_record(entries: dict, texts: dict[str, str]) -> int:
  """Prints the entries as JSON, then each text as plain lines, not as JSON."""
  print(json.dumps(entries, indent=2, ensure_ascii=False))
  for key, text in texts.items():
    print(f'\n{key}:\n{text.rstrip()}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; exit code: 1 for a damaged file, 2 for a user's mistake."""
  return runtime.run(lambda: inspect(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
