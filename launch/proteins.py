r"""Scores a folding model: python -m launch.proteins score --checkpoint=DIR .

  score --checkpoint=runs/fold
  score --checkpoint=runs/fold --structures=./my_structures --output=scores

Each score stands beside the scores of three baselines: an ideal helix, a
compact random chain, and the nearest training chain.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later

protein_scores_page = Later('moe.report.protein_scores_page')
folded = Later('moe.runs.folded')
folding = Later('moe.runs.folding')
protein_scores = Later('moe.runs.protein_scores')
proteins = Later('tasks.proteins')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('proteins', __doc__)
  parser.add_argument('verb', choices=['score'])
  add = parser.add_argument
  flags.add_folding_flags(parser)
  add('--split', default='validation', help='of the chains of the run')
  add('--structures', metavar='DIR', help='a folder of your own in their place')
  add('--longest', type=int, default=96, help='residues of the longest chain')
  add('--output', metavar='DIR', help='default: the work directory')
  return parser.parse_args(argv)


def score(args: argparse.Namespace, command: str) -> int:
  """Scores, prints the means and writes the page."""
  run = configuration.load_other_run(
    args.checkpoint, configuration.FOLDING_MODEL
  )
  runtime.set_up_jax()
  stores = folding.stores_of(run, proteins.prepare)
  if args.structures:
    given = proteins.all_of(args.structures)
  else:
    given = folding.chains_of(stores, args.split)
  chains = protein_scores.chosen(given, args.longest)
  model = folded.load(run, args.checkpoint)
  training = folding.chains_of(stores, 'train')
  runtime.log(f'{len(chains)} chains; {len(training):,} training chains')
  found = protein_scores.score_chains(
    model, chains, training, args.recycles, args.memory
  )
  page = protein_scores_page.write(
    pathlib.Path(args.output or args.checkpoint), model.origin, found, command
  )
  print(protein_scores_page.as_text(found, command))
  print(f'page: {page}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Scores; the exit code is 2 for an error that the user can fix."""
  command = runtime.command_line('proteins', argv)
  return runtime.run(lambda: score(parse(argv), command))


if __name__ == '__main__':
  sys.exit(main())
