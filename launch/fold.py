r"""Folds proteins: python -m launch.fold --checkpoint=DIR --out=DIR ...

  --checkpoint=runs/fold --sequence=GSHMTEYKLVVVGAGGVGKS --out=folded
  --checkpoint=runs/fold --fasta=chains.fasta --out=folded --recycles=3

It writes mmCIF and PDB files with pLDDT x 100 as B factors, and a page on which
the structures can be turned. The structures are computed, not measured. They
are relaxed, which mends bonds and clashes. --relax_steps=0 leaves this out,
which saves time with long chains: on a CPU, 500 steps for 512 residues take
about a minute.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from moe import bounds
from moe.modalities import sequences

fold_files = Later('moe.report.fold_files')
folded = Later('moe.runs.folded')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('fold', __doc__)
  add = parser.add_argument
  flags.add_folding_flags(parser)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--sequence', help='one-letter names of the residues')
  what.add_argument('--fasta', metavar='FILE', help='many sequences')
  add('--out', required=True, metavar='DIR', help='where files are written')
  add('--samples', type=int, default=1, help='more than 1: with dropout')
  add('--seed', type=int, default=0, help='of the samples')
  text = 'that mend bonds and clashes; 0 writes what the model gives'
  add('--relax_steps', type=int, help=f'steps {text} (default: 500)')
  return parser.parse_args(argv)


def fold(args: argparse.Namespace) -> int:
  """Folds sequences and writes the files; the exit code is 0."""
  if args.sequence is not None:
    given = {'sequence': sequences.cleaned(args.sequence, '--sequence')}
  else:
    given = sequences.read_fasta(args.fasta, '--fasta')
  steps = args.relax_steps
  if steps is None:
    steps = folded.RELAX_STEPS
  bounds.at_least(0, '--relax_steps', steps, '0 changes no structure')
  run = configuration.load_other_run(
    args.checkpoint, configuration.FOLDING_MODEL
  )
  runtime.set_up_jax()
  model = folded.load(run, args.checkpoint)
  needed = model.check_memory(given, args.memory)
  runtime.log(f'{len(given)} chains; the longest needs about {needed:.1f} GB')
  counts = args.recycles, args.samples
  found = (
    one._replace(chain=folded.relaxed(one.chain, steps))
    for one in folded.samples(model, given, counts, args.memory, args.seed)
  )
  origin = model.origin._replace(relax_steps=steps)
  for line in fold_files.write(pathlib.Path(args.out), origin, found):
    print(line, flush=True)
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Folds; the exit code is 2 for an error that the user can fix."""
  return runtime.run(lambda: fold(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
