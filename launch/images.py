r"""Image tokenizers: python -m launch.images VERB ...

  tokenizer-report --checkpoint=runs/fashion_codes
  encode --checkpoint=runs/fashion_codes --output=runs/fashion_codes/codes

`python -m launch.train --gin_file=runs/image_tokenizer_fashion.gin
--workdir=runs/fashion_codes` trains an image tokenizer.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from launch import runtime, token_stores
from launch.configs import configuration
from moe.data.cache_dir import default_cache_dir
from moe.evaluate import score


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
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
  """Scores reconstructions, or writes codes."""
  # Here, since --help needs no JAX.
  from moe.runs import image_tokenizer, picture_codes, tokenizer_report

  tokenizer = image_tokenizer.load(args.checkpoint)
  trains = configuration.IMAGE_TOKENIZER
  data = configuration.load_other_run(args.checkpoint, trains).data
  runtime.set_up_jax()
  pictures = token_stores.prepare_pictures(
    args.pictures or data.names,
    tokenizer.pixels,
    args.cache_dir or data.cache_dir or default_cache_dir(),
  )
  if args.verb == 'tokenizer-report':
    found, scores = tokenizer_report.report(tokenizer, pictures, command)
    directory = pathlib.Path(args.output or args.checkpoint)
    name = os.path.basename(os.path.abspath(args.checkpoint))
    title = f'Image tokenizer {name}'
    page = runtime.write_page(
      'tokenizer', directory, title, tokenizer.facts, found, scores
    )
    print(f'{score.as_table(scores)}\n\npage: {page}')
    return 0
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
