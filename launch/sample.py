r"""Writes with a trained model: python -m launch.sample ...

--checkpoint=runs/poems --prompt='春曉\n' --num=3 --top_p=0.9
--checkpoint=runs/poems --prompt=春曉 --form=quatrain5
--checkpoint=runs/poems --prompt=白日依山盡 --form=couplet
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.runtime import log
from moe import bounds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.sample',
    description='Writes after a prompt with a trained model.',
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    '--checkpoint',
    required=True,
    metavar='DIR',
    help='work directory of a run, or one step in its checkpoints; of a run '
    'the best step is taken if one is recorded, else the latest',
  )
  add(
    '--prompt',
    required=True,
    help=r'text to write after; \n stands for a line break',
  )
  add('--num', type=int, default=1, help='samples to write')
  add(
    '--temperature',
    type=float,
    default=1.0,
    help='0 takes the likeliest token each time',
  )
  add(
    '--top_k',
    type=int,
    default=0,
    help='draw from the k likeliest tokens; 0 for all',
  )
  add(
    '--top_p',
    type=float,
    default=1.0,
    help='draw from the likeliest tokens that hold this much probability',
  )
  add('--seed', type=int, default=0, help='same seed, same samples')
  add(
    '--max_tokens',
    type=int,
    help='most tokens to write; default: what the context leaves',
  )
  add(
    '--form',
    metavar='couplet|quatrain5|quatrain7|octave5|octave7',
    help='hold length and punctuation to this form; the prompt is then the '
    'first line of the couplet, or the title of the poem',
  )
  return parser.parse_args(argv)


def sample(args: argparse.Namespace) -> int:
  """Prints samples.

  Raises:
    ValueError: if flags do not fit each other or the checkpoint.
  """
  # Imported here, since --help must answer at once.
  from launch.configs import configuration
  from moe.runs import writing

  if args.num < 1:
    raise ValueError(f'--num must be at least 1, got {args.num}.')
  if args.max_tokens is not None and args.max_tokens < 1:
    raise ValueError(f'--max_tokens must be at least 1, got {args.max_tokens}.')
  bounds.seed('--seed', args.seed)
  if not args.prompt:
    raise ValueError('--prompt must hold some text, got none.')
  if args.form and args.max_tokens:
    raise ValueError(
      f'--form={args.form} has a length of its own: leave out --max_tokens.'
    )
  sampling = writing.Sampling(args.temperature, args.top_k, args.top_p)
  runtime.set_up_jax()
  trained = configuration.load_run(args.checkpoint)
  writing.check_causal(trained.run, args.checkpoint)
  prompt = args.prompt.replace('\\n', '\n')
  beginning = writing.begin(trained, prompt, args.form, args.max_tokens)
  log(f'{trained.workdir}, step {trained.step}')
  samples = writing.write(trained, beginning, args.num, sampling, args.seed)
  for number, (text, is_cut) in enumerate(samples, start=1):
    if is_cut:
      log(f'sample {number} was cut at {beginning.limit} tokens')
    print(text, end='\n\n')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints samples; 2 if there are none, with one sentence that says why."""
  args = parse(argv)
  return runtime.run(lambda: sample(args))


if __name__ == '__main__':
  sys.exit(main())
