r"""Writes text with a trained model: python -m launch.sample ...

--checkpoint=runs/poems --prompt='春曉\n' --num=3 --top_p=0.9
--checkpoint=runs/poems --prompt=春曉 --form=quatrain5
--checkpoint=runs/poems --prompt=白日依山盡 --form=couplet
--checkpoint=runs/verse --prompt=春曉 --num=16 --rerank=inverse
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from launch.runtime import log
from moe import bounds
from moe.data.text_file import unescaped
from tasks import mixtures

reranking = Later('moe.runs.reranking')
writing = Later('moe.runs.writing')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser(
    'sample', 'Writes after a prompt with a trained model.'
  )
  add = parser.add_argument
  flags.add_checkpoint_flag(parser)
  text = r'text to write after; \n stands for a line break, \\ for a backslash'
  add('--prompt', required=True, help=text)
  add('--num', type=int, default=1, help='samples to write')
  text = '0 takes the most likely token each time'
  add('--temperature', type=float, default=1.0, help=text)
  text = 'draw from the k most likely tokens; 0 for all'
  add('--top_k', type=int, default=0, help=text)
  text = 'draw from the fewest tokens that hold this much probability'
  add('--top_p', type=float, default=1.0, help=text)
  add('--seed', type=int, default=0, help='the same seed gives equal samples')
  text = 'write at most so many tokens; default: what the context has room for'
  add('--max_tokens', type=int, help=text)
  add(
    '--form',
    metavar='couplet|quatrain5|quatrain7|octave5|octave7',
    help='write lines of this length and punctuation; the prompt is then the '
    'first line of the couplet, or the title of the poem',
  )
  text = 'print the samples first after which the prompt is likeliest; needs a'
  text += ' task such as poems_inverse in training'
  add('--rerank', choices=['inverse'], help=text)
  return parser.parse_args(argv)


def sample(args: argparse.Namespace) -> int:
  """Prints samples.

  Raises:
    ValueError: if a flag is out of range or does not suit the checkpoint, or if
      flags contradict each other.
  """
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
  if args.rerank:
    task = trained.run.data.train
    tasks = mixtures.registry.MIXTURES.get(task, (task,))
    reranking.check_inverse(args.checkpoint, tasks)
  prompt = unescaped(args.prompt)
  beginning = writing.read_prompt(trained, prompt, args.form, args.max_tokens)
  log(f'{trained.workdir}, step {trained.step}')
  samples = writing.write_samples(
    trained, beginning, args.num, sampling, args.seed
  )
  if args.rerank:
    samples = reranking.reranked(trained, prompt, samples)
  for number, (text, is_cut) in enumerate(samples, start=1):
    if is_cut:
      log(f'sample {number} was cut after token {beginning.limit}')
    print(text, end='\n\n')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints samples; the exit code is 2 for an error that the user can fix."""
  return runtime.run(lambda: sample(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
