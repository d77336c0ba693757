r"""Corpora, vocabularies and token stores: python -m launch.data VERB ...

  list                              every task and mixture
  inspect poems_shi                 what its documents look like
  vocabulary --task=poems_shi --size=8192 --output=poems.model
  cache poems_shi --vocab_size=8192   tokenise, with a vocabulary of its own
  cache zh_mix --vocabulary=poems.model
  verify                            read every store again and compare

Token stores lie in <cache_dir>/<vocabulary name>/<task>/<split>, the vocabulary
in <cache_dir>/<vocabulary name>/vocabulary.model.
"""

import argparse
import difflib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from launch import runtime
from moe.data.store import MANIFEST, MIXTURE, default_cache_dir


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.data',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name, text):
    return verbs.add_parser(
      name, help=text, description=text, allow_abbrev=False
    )

  verb('list', 'list every task and mixture')
  inspect = verb('inspect', 'show documents of a task and measure them')
  inspect.add_argument('task', metavar='TASK', help='a task or mixture')
  inspect.add_argument('--split', default='train', help='default: train')
  inspect.add_argument(
    '--num', type=int, default=3, help='documents to print; default: 3'
  )
  inspect.add_argument(
    '--vocabulary',
    metavar='F',
    help='to count tokens with; default: one of at most 8192 pieces, trained '
    'on the train split for the occasion',
  )

  vocabulary = verb('vocabulary', 'train a SentencePiece vocabulary')
  source = vocabulary.add_mutually_exclusive_group(required=True)
  source.add_argument('--task', help='trains on the train split of a task')
  source.add_argument(
    '--text_file',
    metavar='F',
    help=r'trains on a file: one document a line, \n for a line break inside',
  )
  vocabulary.add_argument('--size', type=int, required=True, help='pieces')
  vocabulary.add_argument('--output', required=True, metavar='F')
  vocabulary.add_argument(
    '--model_type', choices=('bpe', 'char', 'unigram'), default='bpe'
  )

  cache = verb('cache', 'make the token stores of tasks that are not there yet')
  cache.add_argument(
    'tasks',
    nargs='+',
    metavar='TASK[/SPLIT]',
    help='task or mixture; all are looked up before the first one is made',
  )
  cache.add_argument(
    '--split',
    nargs='+',
    action='extend',
    help='of every task without one; default: train and validation where it '
    'has them',
  )
  which = cache.add_mutually_exclusive_group(required=True)
  which.add_argument('--vocabulary', metavar='F', help='to tokenise with')
  which.add_argument(
    '--vocab_size',
    type=int,
    metavar='N',
    help='pieces of a vocabulary trained on the train split of the first task',
  )
  cache.add_argument(
    '--overwrite',
    action='store_true',
    help='make stores again whose files and code are what they were',
  )
  cache.add_argument(
    '--max_bad_fraction',
    type=float,
    default=1e-4,
    help='of the documents, those that may be malformed; default: 1e-4',
  )
  verify = verb('verify', 'check token stores against their manifests')
  verify.add_argument(
    'what',
    nargs='?',
    metavar='DIR_OR_TASK',
    help='a directory with stores, or a task; default: all in the cache',
  )
  for command in (cache, verify):
    command.add_argument(
      '--cache_dir',
      metavar='D',
      default=default_cache_dir(),
      help='default: $WUDAO_CACHE or ~/.cache/wudao',
    )
  return parser.parse_args(argv)


def make_vocabulary(args: argparse.Namespace) -> int:
  """The verb `vocabulary`."""
  from moe.data import cache
  from moe.evaluate.documents import read_texts
  from moe.modalities.vocabulary import train_vocabulary
  from tasks.stores import register_tasks

  if args.text_file:
    texts = read_texts(args.text_file)
  else:
    register_tasks()
    cache.tasks_with(args.task, 'train')
    documents = cache.documents(args.task, 'train')
    texts = (''.join(document.values()) for document in documents)
  trained = train_vocabulary(texts, args.size, args.output, args.model_type)
  print(f'{args.output}: {trained.size} pieces, SHA-256 {trained.sha256}')
  return 0


def make_stores(args: argparse.Namespace) -> int:
  """The verb `cache`."""
  from tasks.stores import prepare

  wanted = []
  for text in args.tasks:
    task, _, split = text.partition('/')
    wanted.append((task, [split] if split else args.split))
  directory = prepare(
    wanted,
    args.cache_dir,
    args.vocabulary,
    args.vocab_size,
    args.overwrite,
    args.max_bad_fraction,
  )
  print(directory)
  return 0


def verify_stores(args: argparse.Namespace) -> int:
  """The verb `verify`: 1 if a store is not sound."""
  from moe.data.verify import verify

  what = args.what or args.cache_dir
  if os.path.isdir(what):
    roots = [what]
  else:
    roots = _directories_of(what, args.cache_dir)
  stores = sorted(
    str(path.parent)
    for root in roots
    for path in pathlib.Path(root).rglob(MANIFEST)
    if not path.parent.name.endswith('.tmp')
  )
  if not stores:
    found = {path.name for path in pathlib.Path(args.cache_dir).glob('*/*/')}
    near = difflib.get_close_matches(what, sorted(found), cutoff=0.5)
    hint = f'; did you mean {" or ".join(near)}?' if near else '.'
    place = f'of {args.what} must be there or' if args.what else 'must be'
    raise ValueError(
      f'Token stores {place} in {args.cache_dir}, got none: make them with'
      f' `python -m launch.data cache`{hint}'
    )
  num_unsound = 0
  for store in stores:
    problems = verify(store)
    print(f'{"UNSOUND" if problems else "sound  "} {store}')
    for problem in problems:
      print(f'  {problem}')
    num_unsound += bool(problems)
  return 1 if num_unsound else 0


def _directories_of(name, cache_dir) -> list[pathlib.Path]:
  """Directories of the stores of a task, or of a mixture's tasks."""
  found = []
  for directory in sorted(pathlib.Path(cache_dir).glob(f'*/{name}')):
    if (directory / MIXTURE).is_file():
      rates = json.loads((directory / MIXTURE).read_text())['rates']
      found += [directory.parent / task for task in rates]
    else:
      found.append(directory)
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; 2 if it cannot be done, with one sentence that says why."""
  args = parse(argv)
  # Imported where they are used: --help must answer at once.
  from tasks import inspect

  verbs: dict[str, Callable[[argparse.Namespace], int]] = {
    'list': inspect.list_tasks,
    'inspect': inspect.inspect_task,
    'vocabulary': make_vocabulary,
    'cache': make_stores,
    'verify': verify_stores,
  }
  return runtime.run(lambda: verbs[args.verb](args))


if __name__ == '__main__':
  sys.exit(main())
