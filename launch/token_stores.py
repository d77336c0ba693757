"""Token stores that a verb needs, made in a child process if they are missing.

Making them takes TensorFlow, which no training process imports.
"""

import argparse
import pathlib
import subprocess
import sys

from moe.data.store import (
  VOCABULARY,
  Store,
  default_cache_dir,
  file_sha256,
  find_stores,
)
from moe.evaluate.documents import Document, record_document
from moe.runs.run import Run, TrainedRun
from tasks import stores


def find_data(run: Run) -> tuple[str, dict[str, tuple[list[str], list[float]]]]:
  """The vocabulary directory, and the stores and rates of each task.

  What is missing or out of date is made in a child process, since that takes
  TensorFlow. The processes of other hosts find it made, or wait for it.

  Raises:
    SystemExit: if it can't be made.
  """
  data = run.data
  cache_dir = data.cache_dir or default_cache_dir()
  wanted = [(data.train, ['train'])]
  wanted += [(task, ['validation']) for task in data.evaluation]
  vocabulary = data.vocabulary or None
  size = None if vocabulary else run.model.vocab_size
  directory = stores.vocabulary_directory(
    data.train, cache_dir, vocabulary, size
  )
  if not stores.is_prepared(directory, wanted, size):
    flag = f'--vocab_size={size}' if size else f'--vocabulary={vocabulary}'
    command = [sys.executable, '-m', 'launch.data', 'cache', flag]
    command += [f'--cache_dir={cache_dir}']
    command += [f'{task}/{split}' for task, (split,) in wanted]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
      sys.exit(done.returncode)  # the child has said why
  found = {
    (task, split): find_stores(directory, task, split)
    for task, (split,) in wanted
  }
  return directory, found


def vocabulary_file(cache_dir: str, run: TrainedRun) -> str:
  """The run's vocabulary, as the token stores know it if they do."""
  for path in sorted(pathlib.Path(cache_dir).glob(f'*/{VOCABULARY}')):
    if file_sha256(path) == run.vocabulary.sha256:
      return str(path)
  return run.vocabulary.path


def task_documents(args: argparse.Namespace, run: TrainedRun) -> list[Document]:
  """Documents of a split of a task or of a mixture's tasks, in order.

  They are read from token stores; those that are missing are made first, in a
  child process, since that takes TensorFlow.

  Raises:
    ValueError: if they cannot be made.
  """
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
