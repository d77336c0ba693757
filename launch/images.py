r"""Image tokenizers and scores of pictures: python -m launch.images VERB ...

  tokenizer-report --checkpoint=runs/fashion_codes
  encode --checkpoint=runs/fashion_codes --output=runs/fashion_codes/codes
  score --checkpoint=runs/pictures --num=200

`python -m launch.train --gin_file=runs/image_tokenizer_fashion.gin
--workdir=runs/fashion_codes` trains a tokenizer. launch.train with
--gin_file=runs/pictures_cpu.gin trains a model that draws and describes.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from moe.data.cache_dir import default_cache_dir
from moe.evaluate import score
from tasks.pictures import scenes

pictures_page = Later('moe.report.pictures_page')
tokenizer_page = Later('moe.report.tokenizer_page')
drawing = Later('moe.runs.drawing')
held_out_pictures = Later('moe.runs.held_out_pictures')
image_tokenizer = Later('moe.runs.image_tokenizer')
picture_codes = Later('moe.runs.picture_codes')
picture_model = Later('moe.runs.picture_model')
picture_scores = Later('moe.runs.picture_scores')
tokenizer_report = Later('moe.runs.tokenizer_report')
stores = Later('tasks.pictures.stores')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('images', __doc__)
  add_verb = flags.add_verbs(parser)

  def verb(name: str, text: str) -> argparse.ArgumentParser:
    command = add_verb(name, text)
    flags.add_checkpoint_flag(command, 'work directory of the run')
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
  encode.add_argument(
    '--patches',
    action='store_true',
    help='also write pixels, for a model that reads them (runs/patches.gin)',
  )
  scored = verb('score', 'score drawing, describing and recognising')
  scored.add_argument(
    '--num', type=int, default=200, help='sentences to draw of each source'
  )
  scored.add_argument(
    '--limit', type=int, default=1500, help='held-out pictures of each source'
  )
  scored.add_argument(
    '--guidance',
    type=float,
    nargs='+',
    default=[1.0, 1.5, 2.0, 3.0],
    help='the best of these on other sentences is used; default %(default)s',
  )
  scored.add_argument('--rerank', type=int, default=1, metavar='K')
  scored.add_argument('--seed', type=int, default=0)
  scored.add_argument(
    '--judge_epochs', type=int, default=4, help='of the independent network'
  )
  scored.add_argument(
    '--output', metavar='DIR', help='default: the work directory'
  )
  return parser.parse_args(argv)


def run_verb(args: argparse.Namespace, command: str) -> int:
  """Runs a verb."""
  if args.verb == 'score':
    return score_model(args, command)
  tokenizer = image_tokenizer.load(args.checkpoint)
  trains = configuration.IMAGE_TOKENIZER
  data = configuration.load_other_run(args.checkpoint, trains).data
  runtime.set_up_jax()
  pictures = stores.prepare(
    args.pictures or data.names,
    tokenizer.pixels,
    args.cache_dir or data.cache_dir or default_cache_dir(),
  )
  if args.verb == 'tokenizer-report':
    found, scores = tokenizer_report.report(tokenizer, pictures, command)
    directory = pathlib.Path(args.output or args.checkpoint)
    name = os.path.basename(os.path.abspath(args.checkpoint))
    title = f'Image tokenizer {name}'
    page = tokenizer_page.write(
      directory, title, tokenizer.facts, found, scores
    )
    print(f'{score.as_table(scores)}\n\npage: {page}')
    return 0
  path = image_tokenizer.path_of(args.checkpoint)
  counts = picture_codes.encode(
    tokenizer, path, pictures, args.output, args.patches
  )
  for name, count in counts.items():
    print(f'{name}: {count:,} pictures')
  module = os.path.join(args.output, picture_codes.MODULE)
  print(f"TASK_MODULES = ('{module}',)")
  return 0


def score_model(args: argparse.Namespace, command: str) -> int:
  """Prints the scores of a picture model, and writes their page."""
  cache_dir = args.cache_dir or default_cache_dir()
  wanted = held_out_pictures.Request(
    scenes.agreement_with_facts,
    drawing.Drawing(args.guidance[0], args.rerank, seed=args.seed),
    args.guidance,
    cache_dir,
    args.num,
    args.limit,
    args.judge_epochs,
    command,
  )
  runtime.set_up_jax()
  model = picture_model.of_run(configuration.load_run(args.checkpoint))
  pictures = stores.prepare(
    args.pictures or picture_model.names_of(model),
    model.tokenizer.pixels,
    cache_dir,
  )
  found = picture_scores.score_sources(model, pictures, wanted)
  directory = pathlib.Path(args.output or model.trained.workdir)
  title = f'Pictures of {os.path.basename(model.trained.workdir)}'
  page = pictures_page.write(directory, title, model.facts, found)
  scores = [one for source in found.values() for one in source.scores]
  print(f'{score.as_table(scores)}\n\npage: {page}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; the exit code is 2 for an error that the user can fix."""
  command = runtime.command_line('images', argv)
  return runtime.run(lambda: run_verb(parse(argv), command))


if __name__ == '__main__':
  sys.exit(main())
