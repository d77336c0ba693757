r"""Corpora, vocabularies and token stores: python -m launch.data VERB ...

  list                              every task and mixture
  inspect poems_shi                 some documents of this task
  vocabulary --task=poems_shi --size=8192 --output=poems.model
  cache poems_shi --vocab_size=8192   train a vocabulary, then tokenise with it
  cache zh_mix --vocabulary=poems.model
  verify                            compare every store with its manifest
  list --task_module=my/letters.py  also the tasks of your own module

Token stores lie in <cache_dir>/<vocabulary name>/<task>/<split>, the vocabulary
in <cache_dir>/<vocabulary name>/vocabulary.model.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import flags
from launch.later import Later
from moe.data.cache_dir import default_cache_dir

inspect = Later('tasks.inspect')
stores = Later('tasks.stores')
verify = Later('tasks.verify')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('data', __doc__)
  add_verb = flags.add_verbs(parser)

  def verb(name: str, text: str) -> argparse.ArgumentParser:
    command = add_verb(name, text)
    flags.add_task_module_flag(command)
    return command

  verb('list', 'list every task and mixture')
  inspect = verb('inspect', 'show documents of a task and their statistics')
  inspect.add_argument('task', metavar='TASK', help='a task or mixture')
  inspect.add_argument('--split', default='train', help='default: train')
  inspect.add_argument(
    '--num', type=int, default=3, help='documents to print; default: 3'
  )
  inspect.add_argument(
    '--vocabulary',
    metavar='F',
    help='counts tokens; default: a temporary one of at most 8192 pieces, '
    'trained on the train split',
  )

  vocabulary = verb('vocabulary', 'train a SentencePiece vocabulary')
  source = vocabulary.add_mutually_exclusive_group(required=True)
  source.add_argument('--task', help='train on the train split of this task')
  source.add_argument(
    '--text_file',
    metavar='F',
    help=r'train on this file: one document per line; \n stands for a line '
    'break',
  )
  vocabulary.add_argument('--size', type=int, required=True, help='pieces')
  vocabulary.add_argument('--output', required=True, metavar='F')
  vocabulary.add_argument(
    '--model_type', choices=('bpe', 'char', 'unigram'), default='bpe'
  )

  cache = verb('cache', 'make token stores that are missing or out of date')
  cache.add_argument(
    'tasks',
    nargs='+',
    metavar='TASK[/SPLIT]',
    help='task or mixture; all names are checked before any store is made',
  )
  cache.add_argument(
    '--split',
    nargs='+',
    action='extend',
    help='splits of each task that names none; default: those of train and '
    'validation that it has',
  )
  which = cache.add_mutually_exclusive_group(required=True)
  which.add_argument(
    '--vocabulary', metavar='F', help='tokenise with this vocabulary'
  )
  which.add_argument(
    '--vocab_size',
    type=int,
    metavar='N',
    help='pieces of a vocabulary trained on the train split of the first task',
  )
  cache.add_argument(
    '--overwrite',
    action='store_true',
    help='make stores again even if they are up to date',
  )
  cache.add_argument(
    '--max_bad_fraction',
    type=share,
    metavar='SHARE',
    help='share of the lines of a file, and of the documents, that may be '
    'malformed; default: what the task allows, usually 1e-4',
  )
  cache.add_argument(
    '--range',
    action='append',
    type=named_size,
    default=[],
    metavar='NAME=SIZE',
    help='a range of ids beside text (command, image, residue or structure), '
    'and its size',
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


def share(text: str) -> float:
  """Parses a flag's number, which must be from 0 to 1."""
  number = float(text)
  if not 0 <= number <= 1:
    raise argparse.ArgumentTypeError(f'must lie between 0 and 1, got {text}')
  return number


def named_size(text: str) -> tuple[str, int]:
  """Parses NAME=SIZE: 'image=8' is ('image', 8)."""
  name, equals, size = text.partition('=')
  if not equals or not size.isdigit():
    raise argparse.ArgumentTypeError(f'must be NAME=SIZE, got {text!r}')
  return name, int(size)


def run_verb(args: argparse.Namespace) -> int:
  """Runs a subcommand; returns 1 if `verify` finds a damaged store, else 0."""
  stores.load_modules(args.task_module)
  match args.verb:
    case 'list':
      inspect.list_tasks()
    case 'inspect':
      inspect.inspect_task(args.task, args.split, args.num, args.vocabulary)
    case 'vocabulary':
      trained = stores.make_vocabulary(
        args.task, args.text_file, args.size, args.output, args.model_type
      )
      print(f'{args.output}: {trained.size} pieces, SHA-256 {trained.sha256}')
    case 'cache':
      directory = stores.prepare(
        [named(text, args.split) for text in args.tasks],
        args.cache_dir,
        args.vocabulary,
        args.vocab_size,
        args.overwrite,
        args.max_bad_fraction,
        dict(args.range),
      )
      print(directory)
    case 'verify':
      return verify.show(args.what, args.cache_dir)
  return 0


def named(text: str, splits: list[str] | None) -> tuple[str, list[str] | None]:
  """Parses TASK/SPLIT into (task, [split]), and TASK into (task, `splits`)."""
  task, _, split = text.partition('/')
  return task, [split] if split else splits


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a subcommand; the exit code is 2 for an error the user can fix."""
  return runtime.run(lambda: run_verb(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
