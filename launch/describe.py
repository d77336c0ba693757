r"""Describes or recognises pictures: python -m launch.describe IMAGE ...

--checkpoint=runs/pictures cat.png dog.jpg --num=3
--checkpoint=runs/pictures boot.png --labels=T恤,褲子,靴子
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from launch.runtime import log
from moe import bounds

sampling_lib = Later('moe.infer.sampling')
picture_model = Later('moe.runs.picture_model')
recognition = Later('moe.runs.recognition')
decoding = Later('tasks.pictures.decoding')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser(
    'describe', 'Describes pictures, or says which of some labels fits best.'
  )
  add = parser.add_argument
  add('images', nargs='+', metavar='IMAGE', help='files of pictures')
  flags.add_checkpoint_flag(parser)
  add('--num', type=int, default=3, help='captions to show of each picture')
  text = 'captions to draw of each picture; the likeliest ones are shown'
  add('--samples', type=int, default=16, help=text)
  add('--temperature', type=float, default=0.7, help='of the drawn captions')
  add('--seed', type=int, default=0, help='the same seed gives equal captions')
  text = 'rank these labels by their information gain, and write no caption'
  add('--labels', metavar='A,B,C', help=text)
  add(
    '--template',
    action='append',
    metavar='SENTENCE',
    help='sentence with {} for the label; may be given several times, and '
    'probabilities are averaged; default: the label alone, and three more',
  )
  add(
    '--alpha',
    type=float,
    help='how much of what is expected without the picture is taken away from '
    'a label, from 0 to 1; default 0.5',
  )
  return parser.parse_args(argv)


def describe(args: argparse.Namespace) -> int:
  """Prints captions or labels of each picture with scores, the best first.

  Raises:
    ValueError: if flags are out of range or do not suit the checkpoint, or if
      a picture cannot be read.
  """
  bounds.at_least(1, '--num', args.num, 'captions to show')
  bounds.at_least(1, '--samples', args.samples, 'captions to draw')
  bounds.seed('--seed', args.seed)
  asked = recognition.asked(args.labels, args.template, args.alpha)
  sampling = sampling_lib.Sampling(args.temperature)
  runtime.set_up_jax()
  model = picture_model.of_run(configuration.load_run(args.checkpoint))
  size = model.tokenizer.pixels
  pixels = [decoding.read(name, size) for name in args.images]
  log(f'{model.trained.workdir}, step {model.trained.step}')
  seen = model.see(pixels)
  labels = asked.labels if asked else []
  if asked:
    found = recognition.answers(model, seen, asked)
  else:
    found = model.describe(seen, args.samples, sampling, args.seed)
  for name, answers in zip(args.images, found, strict=True):
    print(name)
    for text, score in answers[: len(labels) or args.num]:
      print(f'  {score:8.3f}  {text}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Describes pictures; the exit code is 2 for an error the user can fix."""
  return runtime.run(lambda: describe(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
