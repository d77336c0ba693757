r"""Scores text with a trained model: python -m launch.evaluate FLAGS.

Examples of FLAGS:
  --checkpoint=runs/poems --task=poems_shi
  --checkpoint=runs/poems --text_file=mine.txt --json
  --checkpoint=runs/poems --text_file=mine.txt --compare=runs/poems_dense

A text file holds one document per line. In a document \n stands for a line
break, and \\ for a backslash.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from launch import runtime, token_stores
from launch.configs import configuration, flags, written
from launch.later import Later
from moe.data.cache_dir import default_cache_dir
from tasks import modules

scoring = Later('moe.runs.scoring')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser(
    'evaluate', 'Bits per character and per byte of a trained model.'
  )
  add = parser.add_argument
  flags.add_checkpoint_flag(parser)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--task', help='a task or mixture to score')
  what.add_argument(
    '--text_file',
    metavar='F',
    help=r'a file to score: one document per line; \n stands for a line break; '
    'empty lines are skipped',
  )
  text = 'split of the task; default: validation'
  add('--split', default='validation', help=text)
  add('--limit', type=positive, help='score only the first LIMIT documents')
  text = 'another checkpoint: adds the difference between the two on the same'
  text += ' documents, with a bootstrap interval'
  add('--compare', metavar='DIR', help=text)
  add('--json', action='store_true', help='print one JSON object')
  text = 'windows of full length per batch; changes memory and speed only'
  add('--batch_size', type=positive, help=text)
  text = 'longest window; default: that of the training run'
  add('--sequence_length', type=positive, help=text)
  add(
    '--stride',
    type=positive,
    help='in documents longer than a window: new tokens that each window '
    'scores, after it reads the tokens before them again; default: half the '
    'sequence length; the scores of training are those of a whole window',
  )
  text = 'directory of token stores; default: that of the run'
  add('--cache_dir', default='', help=text)
  flags.add_task_module_flag(parser)
  return parser.parse_args(argv)


def positive(text: str) -> int:
  """Parses a flag's whole number, which must be at least 1."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
  return number


def evaluate(args: argparse.Namespace, command: str) -> int:
  """Prints the scores and the command that computes them again."""
  if args.task:
    task_modules, cache_dir = written.task_modules_and_cache(args.checkpoint)
    modules.check_tasks(
      [args.task],
      args.cache_dir or cache_dir or default_cache_dir(),
      [*task_modules, *args.task_module],
    )
  runtime.set_up_jax()
  report = scoring.evaluate(
    [args.checkpoint, *([args.compare] if args.compare else [])],
    scoring.ScoringRequest(
      task=args.task,
      text_file=args.text_file,
      split=args.split,
      limit=args.limit,
      cache_dir=args.cache_dir,
      sequence_length=args.sequence_length,
      stride=args.stride,
      batch_size=args.batch_size,
      task_modules=args.task_module,
      command=command,
    ),
    configuration.load_run,
    token_stores.prepare,
  )
  if args.json:
    print(json.dumps(report))
  else:
    print(scoring.as_text(report))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints scores; the exit code is 2 for an error that the user can fix."""
  command = runtime.command_line('evaluate', argv)
  return runtime.run(lambda: evaluate(parse(argv), command))


if __name__ == '__main__':
  sys.exit(main())
