"""Scores models of proteins: python -m launch.proteins VERB --checkpoint=DIR.

  score --checkpoint=runs/fold
  score --checkpoint=runs/fold --structures=./my_structures --output=scores
  secondary --checkpoint=runs/fold
  language --checkpoint=runs/chains

`score` scores a folding model, before and after its structures are relaxed,
beside baselines, such as an ideal helix, a compact random chain, and the
nearest training chain. `secondary` predicts whether each residue is in a helix,
a strand or a coil, from the states of the trunk of a folding model or of a
language model. `language` scores a language model of residues: bits per
residue, also of hidden ones, and the share of 3Di letters that it predicts
right. The scores stand beside those of n-gram models.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime, token_stores
from launch.configs import configuration, flags
from launch.later import Later
from moe.evaluate.score import as_table

protein_scores_page = Later('moe.report.protein_scores_page')
chain_language = Later('moe.runs.chain_language')
chain_states = Later('moe.runs.chain_states')
folded = Later('moe.runs.folded')
folding = Later('moe.runs.folding')
protein_scores = Later('moe.runs.protein_scores')
structure_probe = Later('moe.runs.structure_probe')
proteins = Later('tasks.proteins')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('proteins', __doc__)
  add_verb = flags.add_verbs(parser)
  scored = add_verb('score', 'score predicted structures, and write a page')
  flags.add_folding_flags(scored)
  add = scored.add_argument
  add('--structures', metavar='DIR', help='a folder of your own in their place')
  add('--output', metavar='DIR', help='default: the work directory')
  probed = add_verb('secondary', 'tell helix, strand and coil by the trunk')
  flags.add_checkpoint_flag(probed, 'work directory of a run that reads chains')
  for verb in (scored, probed):
    add = verb.add_argument
    add('--split', default='validation', help='of the chains of the run')
  read = add_verb('language', 'score a language model that reads residues')
  flags.add_checkpoint_flag(read)
  # 255 is LONGEST of tasks/chain_tasks.py: by default no chain is left out.
  for verb, longest in ((scored, 96), (probed, 96), (read, 255)):
    verb.add_argument(
      '--longest',
      type=int,
      default=longest,
      metavar='RESIDUES',
      help=f'leave out longer chains; default {longest}',
    )
  return parser.parse_args(argv)


def score(args: argparse.Namespace, command: str) -> int:
  """Scores predicted structures; prints the means and writes the page."""
  run = configuration.load_other_run(
    args.checkpoint, configuration.FOLDING_MODEL
  )
  runtime.set_up_jax()
  if args.structures:
    given = proteins.all_of(args.structures)
  else:
    stores = folding.stores_of(run, proteins.prepare)
    given = folding.chains_of(stores, args.split)
  chains = protein_scores.chosen(given, args.longest)
  model = folded.load(run, args.checkpoint)
  training = folding.training_chains(run, proteins.prepare)
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


def secondary(args: argparse.Namespace, command: str) -> int:
  """Scores a probe of secondary structure, and prints a table."""
  runtime.set_up_jax()
  place, prepare = args.checkpoint, proteins.prepare
  if configuration.trains(place) == configuration.LANGUAGE_MODEL:
    trained = configuration.load_run(place)
    source = chain_states.of_language_model(trained, prepare)
  else:
    run = configuration.load_other_run(place, configuration.FOLDING_MODEL)
    source = chain_states.of_folding_model(run, place, prepare)
  held_out = protein_scores.chosen(source.chains(args.split), args.longest)
  print(as_table(structure_probe.scores(source, held_out, command)))
  return 0


def language(args: argparse.Namespace, command: str) -> int:
  """Scores a language model of residues, and prints a table."""
  runtime.set_up_jax()
  trained = configuration.load_run(args.checkpoint)
  found = chain_language.scores(
    trained, token_stores.prepare, args.longest, command
  )
  print(as_table(found))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Scores; the exit code is 2 for an error that the user can fix."""
  command = runtime.command_line('proteins', argv)
  verbs = {'score': score, 'secondary': secondary, 'language': language}

  def chosen() -> int:
    args = parse(argv)
    return verbs[args.verb](args, command)

  return runtime.run(chosen)


if __name__ == '__main__':
  sys.exit(main())
