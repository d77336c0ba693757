"""Makes vocabularies and token stores that are missing or out of date."""

import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

from moe.atomic_files import write_file, write_json
from moe.data import cache
from moe.data.store import MANIFEST, MIXTURE, VOCABULARY, is_store
from moe.data.text_file import read_texts
from moe.modalities.text import Vocabulary, train_vocabulary
from tasks import (
  modules,
  origin,
  outdated,
  registry,
  store_lock,
  tensorflow_log,
)

_logger = logging.getLogger(__name__)


def prepare(
  wanted: Sequence[tuple[str, Sequence[str] | None]],
  cache_dir: str | os.PathLike,
  vocabulary: str | os.PathLike | None = None,
  vocab_size: int | None = None,
  overwrite: bool = False,
  max_bad_fraction: float | None = None,
  ranges: Mapping[str, int] | None = None,
) -> str:
  """Makes missing or outdated token stores of tasks, and their vocabulary.

  A store is outdated if its data files, its task code or its vocabulary have
  changed. The check needs no TensorFlow, but making a store does. So a training
  process calls this function in a child process. If several processes call it
  at the same time, one works and the others wait.

  Args:
    wanted: (task or mixture, its splits) pairs. Splits of None mean train and
      validation, if they exist. If a task of a mixture lacks a split, it is
      left out of that split.
    cache_dir: directory of all token stores.
    vocabulary: file of the vocabulary to tokenise with.
    vocab_size: number of pieces of the vocabulary. If no file is given, a
      vocabulary of this size is trained on the first task.
    overwrite: whether existing stores are made again.
    max_bad_fraction: largest share of malformed lines of a file, and of
      malformed documents. With None, each source and `moe.data.cache` use their
      own limits.
    ranges: name -> size of each id range that follows the text range.

  Returns:
    The vocabulary's directory. `moe.data.store.find_stores` finds the stores
    there.

  Raises:
    ValueError: if a task, a split, a corpus or the vocabulary is missing or
      cannot be used. What is missing is found before any vocabulary is trained
      and before any store is made.
  """
  first = wanted[0][0]
  directory = outdated.vocabulary_directory(
    first, cache_dir, vocabulary, vocab_size, ranges
  )
  size = vocab_size if vocabulary is None else None
  if not overwrite and outdated.is_prepared(directory, wanted, size):
    return directory
  if max_bad_fraction is not None:
    modules.load()
    for task, _ in wanted:
      registry.allow_malformed(task, max_bad_fraction)
  register_tasks([task for task, _ in wanted])
  parts = [part for pair in wanted for part in _parts(*pair)]
  with store_lock.held(directory):
    _prepare_vocabulary(directory, first, vocabulary, vocab_size)
    for task, _ in wanted:
      _prepare_mixture(directory, task)
    for task_name, split in dict.fromkeys(parts):
      # Another process may have made the store while this one waited.
      reason = outdated.store_outdated(directory, task_name, split)
      if reason and is_store(os.path.join(directory, task_name, split)):
        _logger.info(f'{task_name}/{split} is made again: {reason}')
      if reason or overwrite:
        _cache(task_name, split, directory, max_bad_fraction, ranges)
  return directory


def make_vocabulary(
  task: str | None,
  text_file: str | None,
  size: int,
  output: str | os.PathLike,
  model_type: str = 'bpe',
) -> Vocabulary:
  """Trains a vocabulary without making a store.

  Args:
    task: the task whose train split is the text.
    text_file: a file of one document per line, used instead of a task.
    size: number of pieces.
    output: file to write.
    model_type: the kind of SentencePiece model: 'bpe', 'char' or 'unigram'.

  Raises:
    ValueError: if the text is missing or cannot be used.
  """
  if text_file:
    return train_vocabulary(read_texts(text_file), size, output, model_type)
  register_tasks([task])
  cache.tasks_with(task, 'train')
  return train_vocabulary(_texts(task), size, output, model_type)


def _origin(task_name: str, split: str) -> dict:
  """The record of a split's files and code; {} if no module is known."""
  if task_name in registry.TASKS:
    return origin.of_task(registry.TASKS[task_name], split)
  module = modules.MODULE_OF.get(task_name)
  return origin.record(origin.code(module)) if module else {}


def _left_out(task_name: str, split: str) -> dict[str, dict[str, int]]:
  """{'left_out': reason -> records that the source leaves out}, or {}."""
  source = getattr(registry.TASKS.get(task_name), 'source', None)
  if not hasattr(source, 'left_out'):
    return {}
  return {'left_out': source.left_out(split)}


def register_tasks(names: Sequence[str] = ()) -> None:
  """Registers every declared task with seqio, which takes seconds to import.

  Args:
    names: tasks and mixtures that must be declared.

  Raises:
    ValueError: if a name is not declared; raised before the slow import of
      TensorFlow.
  """
  modules.load()
  for name in names:
    modules.check_declared(name)
  tensorflow_log.set_up()
  with tensorflow_log.dropped():
    # Imported here, since it imports TensorFlow.
    from tasks import seqio_tasks
  seqio_tasks.register()


def load_modules(task_modules: Sequence[str]) -> None:
  """Declares all tasks, without TensorFlow's messages if a module imports it.

  Args:
    task_modules: as in `tasks.modules.locate`.

  Raises:
    ValueError: as in `tasks.modules.load`.
  """
  tensorflow_log.set_up()
  with tensorflow_log.dropped():
    modules.load(task_modules)


def _parts(task: str, splits: Sequence[str] | None) -> list[tuple[str, str]]:
  """(task, split) of each store; ValueError if a split has no document."""
  found = cache.splits(task)
  if splits is None:
    splits = [split for split in outdated.DEFAULT_SPLITS if split in found]
  parts = [
    (task_name, split)
    for split in splits
    for task_name in cache.tasks_with(task, split)
  ]
  for task_name, split in parts:
    if next(cache.documents(task_name, split), None) is None:
      raise registry.no_documents(task_name, split)
  return parts


def _prepare_vocabulary(
  directory: str,
  task: str,
  vocabulary: str | os.PathLike | None,
  vocab_size: int | None,
) -> None:
  path = os.path.join(directory, VOCABULARY)
  is_there = os.path.isfile(path)
  if vocabulary is not None:
    if not is_there:
      os.makedirs(directory, exist_ok=True)
      write_file(path, pathlib.Path(vocabulary).read_bytes())
    return
  reason = outdated.vocabulary_outdated(directory)
  if reason:
    again = f' again: {reason}' if is_there else ''
    _logger.info(
      f'training a vocabulary of {vocab_size} pieces on {task}/train{again}'
    )
    _train_vocabulary(path, task, vocab_size)


def _train_vocabulary(path: str, task: str, vocab_size: int) -> None:
  # The files are recorded before they are read. So if one changes in between,
  # the vocabulary counts as outdated.
  trained_on = {}
  for task_name in cache.tasks_with(task, 'train'):
    trained_on |= _origin(task_name, 'train')
  trained = train_vocabulary(_texts(task), vocab_size, path)
  write_json(
    os.path.join(os.path.dirname(path), outdated.TRAINED_ON), trained_on
  )
  _logger.info(f'{path}: {trained.size} pieces')


def _texts(task: str) -> Iterator[str]:
  """The texts of the train split; one space for a task of codes alone.

  From the space, such a task gets a vocabulary of little more than bytes.
  """
  kinds = set()
  for document in cache.documents(task, 'train'):
    kinds.add(bool(document))
    yield ''.join(document.values())
  if kinds == {False}:
    yield ' '


def _prepare_mixture(directory: str, task: str) -> None:
  """Writes a mixture's rates and splits to a file, so readers need no seqio."""
  rates = dict(cache.resolve(task))
  if list(rates) == [task]:
    return
  os.makedirs(os.path.join(directory, task), exist_ok=True)
  mixture = {
    'rates': rates,
    'splits': cache.splits(task),
    'tasks_sha256': outdated.tasks_sha256(),
  }
  write_json(os.path.join(directory, task, MIXTURE), mixture)


def _cache(
  task_name: str,
  split: str,
  directory: str,
  max_bad_fraction: float | None,
  ranges: Mapping[str, int] | None,
) -> None:
  name, begin = f'{task_name}/{split}', time.monotonic()
  last = begin

  def progress(num_documents: int) -> None:
    nonlocal last
    if time.monotonic() - last > 10:
      last = time.monotonic()
      _logger.info(f'{name}: documents so far: {num_documents}')

  made_of = _origin(task_name, split)
  with tensorflow_log.dropped():
    manifest = cache.cache_task(
      task_name,
      split,
      directory,
      os.path.join(directory, VOCABULARY),
      cache.MAX_BAD_FRACTION if max_bad_fraction is None else max_bad_fraction,
      progress,
      ranges,
    )
  left_out = _left_out(task_name, split)
  # A store without the entry 'origin' counts as outdated. So if the process is
  # killed before this line, the store is made again.
  path = os.path.join(directory, task_name, split, MANIFEST)
  write_json(path, manifest | {'origin': made_of} | left_out)
  counts = manifest['counts']
  reasons = left_out.get('left_out', {})
  others = ''.join(f', {n} with {why}' for why, n in reasons.items())
  _logger.info(
    f'{name}: documents {manifest["records"]}, tokens {manifest["tokens"]},'
    f' characters {counts["chars"]}; left out: malformed'
    f' {counts["malformed"]}, empty {counts["empty"]}{others}'
    f' ({time.monotonic() - begin:.1f} s)'
  )
