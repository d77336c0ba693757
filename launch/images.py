r"""Image tokenizers and scores of pictures: python -m launch.images VERB ...

  tokenizer-report --checkpoint=runs/fashion_codes
  encode --checkpoint=runs/fashion_codes --output=runs/fashion_codes/codes
  score --checkpoint=runs/pictures --num=200
  join runs/pictures runs/pictures_1 runs/pictures_2

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
from tasks.pictures import sentences

sampling_lib = Later('moe.infer.sampling')
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

  def verb(
    name: str, text: str, output: str = 'default: the work directory', **numbers
  ) -> argparse.ArgumentParser:
    command = add_verb(name, text)
    flags.add_checkpoint_flag(command, 'work directory of the run')
    add = command.add_argument
    text = 'names of pictures, or your own folders such as ./my_pictures; '
    text += 'default: those of the run'
    add('--pictures', nargs='+', metavar='NAME', help=text)
    text = 'directory of stores; default: that of the run'
    add('--cache_dir', default='', help=text)
    is_needed = not output.startswith('default')
    add('--output', required=is_needed, metavar='DIR', help=output)
    for flag, (default, text) in numbers.items():
      add(f'--{flag}', type=type(default), default=default, help=text)
    return command

  judge = 'passes of an independent judge over its pictures'
  text = 'score reconstructions, and show them on a page'
  verb('tokenizer-report', text, judge_epochs=(12, f'{judge}; 0 for no judge'))
  text = 'write pictures as codes, with the tasks to read them'
  verb('encode', text, 'folder to write').add_argument(
    '--patches',
    action='store_true',
    help='also write pixels, for a model that reads them (runs/patches.gin)',
  )
  verb(
    'score',
    'score drawing, describing and recognising',
    num=(200, 'sentences to draw of each source'),
    limit=(1500, 'held-out pictures of each source'),
    rerank=(1, 'pictures to draw for each one that is kept'),
    temperature=(0.7, 'of the drawn codes'),
    top_k=(0, 'draw among the likeliest codes; 0 for all'),
    seed=(0, 'seed of the draws'),
    judge_epochs=(12, judge),
  ).add_argument(
    '--guidance',
    type=float,
    nargs='+',
    default=[1.0, 1.5, 2.0, 3.0],
    help='the best of these on other sentences is used; default %(default)s',
  )
  add_verb('join', 'the mean scores of runs with other seeds').add_argument(
    'runs', nargs='+', metavar='DIR', help='directories that `score` wrote to'
  )
  return parser.parse_args(argv)


def run_verb(args: argparse.Namespace, command: str) -> int:
  """Runs a verb."""
  if args.verb == 'join':
    print(score.as_table(pictures_page.join(args.runs)))
    return 0
  if args.verb == 'score':
    return score_model(args, command)
  tokenizer = image_tokenizer.load(args.checkpoint)
  trains = configuration.IMAGE_TOKENIZER
  data = configuration.load_other_run(args.checkpoint, trains).data
  runtime.set_up_jax()
  cache_dir = args.cache_dir or data.cache_dir or default_cache_dir()
  names = args.pictures or data.names
  pictures = stores.prepare(names, tokenizer.pixels, cache_dir)
  if args.verb == 'tokenizer-report':
    found, scores = tokenizer_report.report(
      tokenizer, pictures, command, args.judge_epochs, cache_dir
    )
    directory = pathlib.Path(args.output or args.checkpoint)
    title = f'Image tokenizer {pathlib.Path(args.checkpoint).absolute().name}'
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
  print(picture_codes.run_flags(tokenizer, args.output, counts, args.patches))
  return 0


def score_model(args: argparse.Namespace, command: str) -> int:
  """Prints the scores of a picture model, and writes their page."""
  sampling = sampling_lib.Sampling(args.temperature, args.top_k)
  wanted = held_out_pictures.Request(
    sentences.agreement,
    drawing.Drawing(args.guidance[0], args.rerank, sampling, args.seed),
    args.guidance,
    args.num,
    args.limit,
    args.judge_epochs,
    command,
  )
  runtime.set_up_jax()
  model = picture_model.of_run(configuration.load_run(args.checkpoint))
  cache_dir = args.cache_dir or model.trained.run.data.cache_dir
  cache_dir = cache_dir or default_cache_dir()
  names = args.pictures or picture_scores.names_of(model)
  pictures = stores.prepare(names, model.tokenizer.pixels, cache_dir)
  found = picture_scores.score_sources(model, pictures, wanted, cache_dir)
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
