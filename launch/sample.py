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


def plan(args: argparse.Namespace, run) -> tuple[list[int], object, int]:
  """Prompt ids, jump table and most tokens to write of one sample.

  Raises:
    ValueError: if the prompt is empty, too long, or cannot start the form, and
      if the model's router is not causal.
  """
  from moe.infer import forms
  from moe.runs.run import router_of

  vocabulary = run.vocabulary
  prompt = args.prompt.replace('\\n', '\n')
  if not prompt:
    raise ValueError('--prompt must hold some text, got none.')
  router = router_of(run.run)
  if router and not router.is_causal:
    raise ValueError(
      f'{args.checkpoint} was trained with {type(router).__name__},'
      ' which looks at later tokens and cannot write token by token: score with'
      ' launch.evaluate, or train with another ROUTER, such as @gates.TopK.'
    )
  pieces = forms.pieces_of(vocabulary)
  if args.form:
    if args.max_tokens:
      raise ValueError(
        f'--form={args.form} has a length of its own: leave out --max_tokens.'
      )
    prompt = prompt.rstrip('\n')
    template = forms.template(args.form, prompt)
    prompt += '\n'
    table = forms.form_table(pieces, vocabulary.eos, template)
    wanted = len(table)
  else:
    table = forms.free_table(pieces, vocabulary.eos)
    wanted = args.max_tokens or 1
  ids = vocabulary.encode(prompt)
  length = run.run.data.sequence_length
  room = length - len(ids)
  if room < wanted:
    raise ValueError(
      f'prompt and sample must fit into the context of {length} tokens, got '
      f'{len(ids)} and up to {wanted}: shorten the prompt, or write less.'
    )
  limit = wanted if args.form or args.max_tokens else room
  return ids, table, limit


def sample(args: argparse.Namespace) -> int:
  """Prints samples."""
  # Imported here: --help must answer at once.
  from launch.configs import configuration
  from moe.infer import decode
  from moe.infer.sampling import Sampling

  if args.num < 1:
    raise ValueError(f'--num must be at least 1, got {args.num}.')
  if args.max_tokens is not None and args.max_tokens < 1:
    raise ValueError(f'--max_tokens must be at least 1, got {args.max_tokens}.')
  settings = Sampling(args.temperature, args.top_k, args.top_p)
  runtime.set_up_jax()
  run = configuration.load_run(args.checkpoint)
  ids, table, limit = plan(args, run)
  log(f'{run.workdir}, step {run.step}')
  write = decode.build_writer(run.functional, settings, run.vocabulary.eos)
  samples = decode.generate(
    write,
    run.params,
    run.state,
    [ids] * args.num,
    [table] * args.num,
    limit,
    args.seed,
  )
  for number, tokens in enumerate(samples, start=1):
    if tokens[-1] != run.vocabulary.eos:
      log(f'sample {number} was cut at {limit} tokens')
    print(run.vocabulary.decode([*ids, *tokens]), end='\n\n')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints samples; 2 if there are none, with one sentence that says why."""
  args = parse(argv)
  return runtime.run(lambda: sample(args))


if __name__ == '__main__':
  sys.exit(main())
