r"""Draws pictures from a sentence.

Two examples of flags of `python -m launch.draw`:

--checkpoint=runs/pictures --prompt=左上角有一個大紅色圓形 --out=red.png
--checkpoint=runs/pictures --prompt=圖中是靴子 --num=9 --rerank=4 --out=b.png
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from launch.runtime import log
from moe import bounds

sampling_lib = Later('moe.infer.sampling')
picture_files = Later('moe.report.picture_files')
drawing = Later('moe.runs.drawing')
picture_model = Later('moe.runs.picture_model')
decoding = Later('tasks.pictures.decoding')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser(
    'draw', 'Draws pictures from a sentence with a trained model.'
  )
  add = parser.add_argument
  flags.add_checkpoint_flag(parser)
  add('--prompt', required=True, help='the sentence to draw')
  add('--out', required=True, metavar='FILE', help='PNG file to write')
  add('--num', type=int, default=1, help='pictures, on one sheet')
  text = 'more follows the sentence more; 1 is the model itself, 0 ignores the'
  text += ' sentence; default %(default)s'
  add('--guidance', type=float, default=2.0, help=text)
  text = '0 takes the most likely code each time, which draws blank pictures;'
  text += ' default %(default)s'
  add('--temperature', type=float, default=0.7, help=text)
  add('--top_k', type=int, default=0, help='of the likeliest codes; 0 for all')
  text = 'draw K pictures for each one, and keep the one that the model itself'
  text += ' describes best by the sentence'
  add('--rerank', type=int, default=1, metavar='K', help=text)
  add('--upper_half', metavar='IMAGE', help='picture whose upper half is kept')
  add('--seed', type=int, default=0, help='the same seed gives equal pictures')
  return parser.parse_args(argv)


def draw(args: argparse.Namespace) -> int:
  """Draws the pictures, and writes them to one PNG file.

  Raises:
    ValueError: if a flag is out of range or does not suit the checkpoint, if
      --out names no PNG file in a directory that exists, or if the given
      picture cannot be read.
  """
  bounds.at_least(1, '--num', args.num, 'pictures to draw')
  bounds.seed('--seed', args.seed)
  sampling = sampling_lib.Sampling(args.temperature, args.top_k)
  options = drawing.Drawing(args.guidance, args.rerank, sampling, args.seed)
  out = pathlib.Path(args.out)
  if out.suffix.lower() != '.png' or not out.parent.is_dir():
    raise ValueError(
      f'--out={out} must end in .png and lie in a directory that exists.'
    )
  runtime.set_up_jax()
  model = picture_model.of_run(configuration.load_run(args.checkpoint))
  given = None
  if args.upper_half:
    picture = decoding.read(args.upper_half, model.tokenizer.pixels)
    given = model.upper_half(picture, args.num)
  log(f'{model.trained.workdir}, step {model.trained.step}')
  drawn = model.draw([args.prompt] * args.num, options, given)
  losses = picture_files.write_drawn(out, model, args.prompt, options, drawn)
  print(f'{out}: nats per token of the sentence, given each picture: {losses}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Draws pictures; the exit code is 2 for an error that the user can fix."""
  return runtime.run(lambda: draw(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
