r"""Scores text with a trained model: python -m launch.evaluate ...

  --checkpoint=runs/poems --task=poems_shi
  --checkpoint=runs/poems --text_file=mine.txt --json
  --checkpoint=runs/poems --text_file=mine.txt --compare=runs/poems_dense

A text file holds one document a line; a line break inside is written \n.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

from launch import runtime
from launch.runtime import log

# Unless --batch_size says otherwise.
TOKENS_PER_BATCH = 8192
SECONDS_BETWEEN_LOGS = 10


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.evaluate',
    description='Bits per character and per byte of a trained model.',
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
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--task', help='a task or mixture to score')
  what.add_argument(
    '--text_file',
    metavar='F',
    help=r'a file to score: one document a line, \n for a line break inside; '
    'empty lines are no documents',
  )
  add('--split', default='validation', help='of the task; default: validation')
  add('--limit', type=positive, help='score only the first so many documents')
  add(
    '--compare',
    metavar='DIR',
    help='another checkpoint: adds the difference, paired by document, with a '
    'bootstrap interval',
  )
  add('--json', action='store_true', help='print one JSON object')
  add(
    '--batch_size',
    type=positive,
    help='windows of full length at a time; changes memory and speed only',
  )
  add(
    '--sequence_length',
    type=positive,
    help='longest window; default: that of the training run',
  )
  add(
    '--stride',
    type=positive,
    help='tokens that a window scores of a longer document, after reading the '
    'rest again; default: half the sequence length',
  )
  add('--cache_dir', help='of token stores; default: that of the run')
  return parser.parse_args(argv)


def positive(text: str) -> int:
  """A flag's whole number, at least 1."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
  return number


def prepare(args: argparse.Namespace, directory: str, texts):
  """(run, documents, context) of a checkpoint: all that can be wrong is tried.

  Raises:
    ValueError: if checkpoint, task or flags do not fit.
  """
  from launch import token_stores
  from launch.configs import configuration
  from moe.evaluate import documents as documents_lib
  from moe.evaluate import likelihood

  run = configuration.load_run(directory)
  length = args.sequence_length or run.run.data.sequence_length
  context = likelihood.Context(
    length,
    args.stride or max(1, length // 2),
    args.batch_size or max(1, TOKENS_PER_BATCH // length),
  )
  likelihood.check_context(context)
  if args.task:
    documents = token_stores.task_documents(args, run)
  else:
    documents = documents_lib.text_documents(run.vocabulary, texts)
  return run, documents, context


def score(args: argparse.Namespace, directory: str, texts):
  """(documents, their nats, what is to be reported) of a checkpoint.

  A run lives only as long as this call: gin configures its model as it is
  called, and there is one gin in a process.
  """
  from moe.evaluate import likelihood

  run, documents, context = prepare(args, directory, texts)
  log(f'{run.workdir}, step {run.step}: {len(documents)} documents')
  begin = time.monotonic()
  nats = likelihood.score_documents(
    run.functional, run.params, run.state, documents, context, progress_log()
  )
  log(f'scored in {time.monotonic() - begin:.1f} s')
  report = {
    **likelihood.totals(documents, nats),
    'checkpoint': run.workdir,
    'step': run.step,
    'sequence_length': context.length,
    'stride': context.stride,
  }
  if report['unknown_tokens']:
    log(
      f'{report["unknown_tokens"]} unknown tokens: what they hide is charged '
      'as spelt out, all code points alike'
    )
  return documents, nats, report


def progress_log() -> Callable[[int, int], None]:
  """Says from time to time how much is done."""
  last = time.monotonic()

  def on_progress(done, total):
    nonlocal last
    if time.monotonic() - last > SECONDS_BETWEEN_LOGS:
      last = time.monotonic()
      log(f'{done} of {total} windows')

  return on_progress


def evaluate(args: argparse.Namespace) -> dict:
  """What is to be printed: one report, with another one and the difference.

  Raises:
    ValueError: if anything asked for is missing or does not fit, before the
      first document is scored.
  """
  from moe.evaluate import comparison
  from moe.evaluate import documents as documents_lib

  runtime.set_up_jax()
  texts = (
    documents_lib.read_texts(args.text_file)[: args.limit]
    if args.text_file
    else None
  )
  if args.compare:
    prepare(args, args.compare, texts)
  documents, nats, report = score(args, args.checkpoint, texts)
  if not args.compare:
    return report
  other_documents, other_nats, other = score(args, args.compare, texts)
  chars = [document.chars for document in documents]
  if chars != [document.chars for document in other_documents]:
    raise ValueError(
      'both models must have scored the same documents, their token stores of '
      f'{args.task}/{args.split} differ: make them again with `python -m '
      'launch.data cache --overwrite`.'
    )
  compared = comparison.compare(nats, other_nats, chars)
  return {**report, 'compare': {**other, **compared._asdict()}}


def as_table(report: dict) -> str:
  """A report for people to read."""
  other = report.get('compare')
  reports = [report] if other is None else [report, other]
  lines = []
  for key in report:
    if key != 'compare':
      cells = [
        f'{one[key]:,.4f}' if isinstance(one[key], float) else f'{one[key]}'
        for one in reports
      ]
      lines.append(f'{key:16} ' + '  '.join(f'{cell:>20}' for cell in cells))
  if other is not None:
    lines.append(
      f'difference of {other["difference"]:+.4f} bits per character, '
      f'{other["confidence"]:.0%} interval {other["low"]:+.4f} to '
      f'{other["high"]:+.4f} ({other["num_resamples"]:,} resamples of '
      f'{report["documents"]} documents); the first is better on '
      f'{other["share_better"]:.1%} of them'
    )
  return '\n'.join(lines)


def show(args: argparse.Namespace) -> int:
  """Prints the score."""
  report = evaluate(args)
  print(json.dumps(report) if args.json else as_table(report))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the score; 2 if there is none, with one sentence that says why."""
  args = parse(argv)
  return runtime.run(lambda: show(args))


if __name__ == '__main__':
  sys.exit(main())
