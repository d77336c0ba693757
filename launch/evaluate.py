r"""Scores text with a trained model: python -m launch.evaluate ...

  --checkpoint=runs/poems --task=poems_shi
  --checkpoint=runs/poems --text_file=mine.txt --json
  --checkpoint=runs/poems --text_file=mine.txt --compare=runs/poems_dense

A text file holds one document a line; a line break inside is written \n.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from launch.stores import log

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


def read_texts(path: str) -> list[str]:
  """Documents of a text file.

  Raises:
    ValueError: if it is missing, empty or no UTF-8, with the line number.
  """
  try:
    with open(path, 'rb') as f:
      lines = f.read().removeprefix(b'\xef\xbb\xbf').split(b'\n')
  except OSError as error:
    raise ValueError(
      f'--text_file={path} must be a file to read: {error.strerror}.'
    ) from error
  texts = []
  for number, line in enumerate(lines, start=1):
    try:
      text = line.removesuffix(b'\r').decode()
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{path}:{number}: a text file must be UTF-8, got byte '
        f'{line[error.start]:#04x} at place {error.start + 1} of the line: '
        'convert the file first.'
      ) from error
    if text:
      texts.append(text.replace('\\n', '\n'))
  if not texts:
    raise ValueError(f'{path} must hold at least one document, got none.')
  return texts


def text_documents(vocabulary, texts: Sequence[str]) -> list:
  """Texts as documents to score, unknown tokens and what they hide counted.

  Raises:
    ValueError: if the vocabulary alters a text: its bits would be another's.
  """
  from moe.evaluate.likelihood import Document

  documents = []
  for number, text in enumerate(texts, start=1):
    ids = vocabulary.encode(text)
    known = [i for i in ids if i != vocabulary.unk]
    num_unknown = len(ids) - len(known)
    if not num_unknown and vocabulary.decode(ids) != text:
      raise ValueError(
        f'the vocabulary must give every text back as it is, document {number} '
        f'({text[:20]!r}...) comes back changed: score it with a checkpoint '
        'whose vocabulary does not normalise.'
      )
    documents.append(
      Document(
        np.array([*ids, vocabulary.eos], np.int32),
        len(text),
        len(text.encode()),
        num_unknown=num_unknown,
        hidden_chars=len(text) - len(vocabulary.decode(known)),
      )
    )
  return documents


def record_document(vocabulary, record: dict):
  """A record of a token store as a document to score."""
  from moe.evaluate.likelihood import Document

  tokens, weights = record['tokens'], record.get('loss_weights')
  scored = tokens if weights is None else tokens[weights > 0]
  known = scored[scored != vocabulary.unk].tolist()
  chars = int(record['num_chars'])
  return Document(
    tokens.astype(np.int32),
    chars,
    int(record['num_bytes']),
    weights,
    num_unknown=len(scored) - len(known),
    hidden_chars=chars - len(vocabulary.decode(known)),
  )


def vocabulary_file(cache_dir: str, run) -> str:
  """The run's vocabulary, as the token stores know it if they do."""
  from moe.data.store import VOCABULARY, file_sha256

  for path in sorted(pathlib.Path(cache_dir).glob(f'*/{VOCABULARY}')):
    if file_sha256(path) == run.vocabulary.sha256:
      return str(path)
  return run.vocabulary.path


def task_documents(args: argparse.Namespace, run) -> list:
  """Documents of a split of a task or of a mixture's tasks, in order.

  They are read from token stores; those that are missing are made first, in a
  child process, since that takes TensorFlow.

  Raises:
    ValueError: if they cannot be made.
  """
  from launch.stores import default_cache_dir
  from moe.data.store import Store, find_stores

  cache_dir = args.cache_dir or run.run.data.cache_dir or default_cache_dir()
  command = [sys.executable, '-m', 'launch.data', 'cache', args.task]
  command += ['--split', args.split, f'--cache_dir={cache_dir}']
  command += [f'--vocabulary={vocabulary_file(cache_dir, run)}']
  made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  if made.returncode:
    sys.exit(made.returncode)  # It has said why.
  directories, _ = find_stores(made.stdout.strip(), args.task, args.split)
  documents = []
  for store in map(Store, directories):
    left = store.lengths.size
    if args.limit is not None:
      left = min(left, args.limit - len(documents))
    records = store.read(range(left))
    documents += [record_document(run.vocabulary, r) for r in records]
  return documents


def prepare(args: argparse.Namespace, directory: str, texts):
  """(run, documents, context) of a checkpoint: all that can be wrong is tried.

  Raises:
    ValueError: if checkpoint, task or flags do not fit.
  """
  from launch import config
  from moe.evaluate import likelihood

  run = config.load_run(directory)
  length = args.sequence_length or run.run.data.sequence_length
  context = likelihood.Context(
    length,
    args.stride or max(1, length // 2),
    args.batch_size or max(1, TOKENS_PER_BATCH // length),
  )
  likelihood.check_context(context)
  if args.task:
    documents = task_documents(args, run)
  else:
    documents = text_documents(run.vocabulary, texts)
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
  from launch.train import configure_jax
  from moe.evaluate import comparison

  configure_jax()
  texts = read_texts(args.text_file)[: args.limit] if args.text_file else None
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


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the score; 2 if there is none, with one sentence that says why."""
  args = parse(argv)
  try:
    report = evaluate(args)
  except (ValueError, OSError) as error:
    log(f'error: {" ".join(str(error).split())}')
    return 2
  print(json.dumps(report) if args.json else as_table(report))
  return 0


if __name__ == '__main__':
  sys.exit(main())
