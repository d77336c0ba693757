r"""Image tokenizers: python -m launch.images VERB ...

  tokenizer-report --checkpoint=runs/fashion_codes
  encode --checkpoint=runs/fashion_codes --output=runs/fashion_codes/codes

`python -m launch.train --gin_file=runs/image_tokenizer_fashion.gin
--workdir=runs/fashion_codes` trains one.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from launch import runtime
from moe.data.cache_dir import default_cache_dir


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.images',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name: str, text: str) -> argparse.ArgumentParser:
    command = verbs.add_parser(
      name, help=text, description=text, allow_abbrev=False
    )
    command.add_argument(
      '--checkpoint',
      required=True,
      metavar='DIR',
      help='work directory of a run that trained an image tokenizer',
    )
    command.add_argument(
      '--pictures',
      nargs='+',
      metavar='NAME',
      help='names of pictures, or your own folders such as ./my_pictures; '
      'default: those of the run',
    )
    command.add_argument(
      '--cache_dir',
      default='',
      help='directory of stores; default: that of the run',
    )
    return command

  report = verb(
    'tokenizer-report', 'score reconstructions, and show them on a page'
  )
  report.add_argument(
    '--output', metavar='DIR', help='default: the work directory'
  )
  encode = verb(
    'encode', 'write pictures as codes, with the tasks to read them'
  )
  encode.add_argument('--output', required=True, metavar='DIR')
  return parser.parse_args(argv)


def run_verb(args: argparse.Namespace, command: str) -> int:
  """Runs a verb."""
  # Imported here, since --help must answer at once.
  from launch.configs import configuration
  from moe.runs import image_tokenizer
  from moe.runs.tokenizer_run import TokenizerRun
  from tasks.pictures import stores

  tokenizer = image_tokenizer.load(args.checkpoint)
  data = configuration.load_other_run(args.checkpoint, TokenizerRun).data
  runtime.set_up_jax()
  pictures = stores.prepare(
    args.pictures or data.names,
    tokenizer.pixels,
    args.cache_dir or data.cache_dir or default_cache_dir(),
  )
  if args.verb == 'encode':
    return encode(args, tokenizer, pictures)
  return report(args, tokenizer, pictures, command)


def report(
  args: argparse.Namespace,
  tokenizer: 'ImageTokenizer',  # noqa: F821  See `run_verb`.
  pictures: dict[str, dict[str, str]],
  command: str,
) -> int:
  """Prints the scores of held-out pictures, and writes the page."""
  # Imported here, since --help must answer at once.
  from moe.data.store import Store
  from moe.evaluate import score
  from moe.report import tokenizer_page
  from moe.runs import tokenizer_report

  held_out = {
    name if split == 'validation' else f'{name}_{split}': Store(directory)
    for name, by_split in pictures.items()
    for split, directory in by_split.items()
    if split != 'train'
  }
  found, scores = tokenizer_report.report(tokenizer, held_out, command)
  page = tokenizer_page.write(
    pathlib.Path(args.output or args.checkpoint),
    f'Image tokenizer {os.path.basename(os.path.abspath(args.checkpoint))}',
    tokenizer.facts,
    found,
    scores,
  )
  print(score.as_table(scores))
  print(f'\npage: {page}')
  return 0


def encode(
  args: argparse.Namespace,
  tokenizer: 'ImageTokenizer',  # noqa: F821  See `run_verb`.
  pictures: dict[str, dict[str, str]],
) -> int:
  """Writes the codes of pictures, and prints how to train on them."""
  # Imported here, since --help must answer at once.
  from moe.runs import image_tokenizer, picture_codes

  path = image_tokenizer.path_of(args.checkpoint)
  counts = picture_codes.encode(tokenizer, path, pictures, args.output)
  for name, count in counts.items():
    print(f'{name}: {count:,} pictures')
  module = os.path.join(args.output, picture_codes.MODULE)
  print(f"TASK_MODULES = ('{module}',)")
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; the exit code is 2 for an error that the user can fix."""
  args = parse(argv)
  words = sys.argv[1:] if argv is None else argv
  command = shlex.join(['python', '-m', 'launch.images', *words])
  return runtime.run(lambda: run_verb(args, command))


if __name__ == '__main__':
  sys.exit(main())
