"""Prints a checkpoint's scorecard: python -m launch.scorecard --checkpoint=DIR.

  --checkpoint=runs/poems --html=scorecard.html
  --checkpoint=runs/poems --against=runs/poems_dense --suite=full --json

A scorecard shows scores on benchmarks with intervals, beside the score of
guessing; the loss per character, beside baselines and in several languages; the
cost of the run; and the share of benchmark items that overlap with the training
text. Scores are stored. A second call only reads them, unless a data file has
changed.
"""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence

from launch import runtime, token_stores
from launch.configs import configuration, flags
from launch.later import Later
from tasks import text_files

scorecard_page = Later('moe.report.scorecard_page')
scorecard = Later('moe.runs.scorecard')
scorecard_scores = Later('moe.runs.scorecard_scores')

SHOTS = (0, 1, 4, 8)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('scorecard', __doc__)
  add = parser.add_argument
  flags.add_checkpoint_flag(parser)
  text = 'another checkpoint, such as the dense twin: adds the differences'
  add('--against', metavar='DIR', help=f'{text} with paired intervals')
  text = 'how much is asked; default: quick'
  add('--suite', choices=('quick', 'full'), default='quick', help=text)
  text = 'solved examples before each item of a benchmark; default: 0'
  add('--shots', type=int, choices=SHOTS, default=0, help=text)
  text = 'folder of shared data; default: $WUDAO_DATA'
  add('--data', metavar='DIR', help=text)
  add('--json', action='store_true', help='print one JSON object')
  add('--html', metavar='FILE', help='write a page, which is one file')
  return parser.parse_args(argv)


def show(options: argparse.Namespace, words: Sequence[str]) -> int:
  """Measures or reads the scorecards, and prints them."""
  runtime.set_up_jax()
  suite = scorecard_scores.SUITES[options.suite]
  data = pathlib.Path(options.data or text_files.data_directory())
  how = [f'--suite={suite.name}', f'--shots={options.shots}']
  cards = []
  for checkpoint in filter(None, (options.checkpoint, options.against)):
    command = shlex.join([*words, f'--checkpoint={checkpoint}', *how])
    asked = scorecard_scores.Asked(suite, options.shots, data, command)
    cards.append(
      scorecard.scorecard(
        checkpoint, asked, configuration.load_run, token_stores.prepare
      )
    )
  paired = []
  if options.against:
    command = [*words, f'--checkpoint={options.checkpoint}']
    command += [f'--against={options.against}', *how]
    paired = scorecard.differences(*cards, shlex.join(command))
  if options.html:
    scorecard_page.write(cards, paired, pathlib.Path(options.html))
  if options.json:
    shown = [scorecard.without_items(card) for card in cards]
    report = shown[0] | {'against': shown[1:], 'differences': paired}
    print(json.dumps(report, ensure_ascii=False))
    return 0
  print(scorecard.as_text(cards, paired))
  if options.html:
    print(f'\npage: {options.html}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a scorecard; the exit code is 2 for an error the user can fix."""
  options = parse(argv)
  words = ['python', '-m', 'launch.scorecard']
  return runtime.run(lambda: show(options, words))


if __name__ == '__main__':
  sys.exit(main())
