"""Tells which vocabularies and token stores exist and are up to date.

This module must not import TensorFlow, since training processes use it.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from moe.data.store import (
  MIXTURE,
  VOCABULARY,
  Store,
  file_sha256,
  find_stores,
  is_store,
)
from moe.modalities.text import Vocabulary
from tasks import modules, origin, registry

# This file beside a trained vocabulary has the `origin.record` of its texts.
TRAINED_ON = 'trained_on.json'
# These splits of a task are cached by default.
DEFAULT_SPLITS = ('train', 'validation')


def vocabulary_directory(
  task: str,
  cache_dir: str | os.PathLike,
  vocabulary: str | os.PathLike | None,
  vocab_size: int | None,
  ranges: Mapping[str, int] | None = None,
) -> str:
  """The directory for a vocabulary and its stores. It need not exist yet.

  Args:
    task: the task on which a vocabulary is trained if no file is given.
    cache_dir: directory of all token stores.
    vocabulary: file of a vocabulary, or None.
    vocab_size: number of pieces of a vocabulary that is trained.
    ranges: name -> size of each id range that follows the text range.

  Returns:
    If no file is given, <cache_dir>/<task>-<vocab_size>. For a file in the
    cache, the directory of the file. For any other file,
    <cache_dir>/<name>-<start of the hash>. This name is that of the file
    without its suffix, or that of its folder if the file is called
    vocabulary.model. The result ends with the names and sizes of the ranges.

  Raises:
    ValueError: if neither a vocabulary nor a size is given, or if the file of
      the vocabulary cannot be used.
  """
  cache_dir = os.path.abspath(cache_dir)
  ending = ''.join(f'-{name}{n}' for name, n in sorted((ranges or {}).items()))
  if vocabulary is None:
    if vocab_size is None:
      raise ValueError(
        'A task is tokenised with a vocabulary, got none: give its file, or the'
        ' size of one to train.'
      )
    return os.path.join(cache_dir, f'{task}-{vocab_size}{ending}')
  path = pathlib.Path(vocabulary).absolute()
  sha256 = Vocabulary(path).sha256
  if path.name == VOCABULARY and str(path.parent.parent) == cache_dir:
    name = str(path.parent)
    return name if name.endswith(ending) else name + ending
  # Different files may have the same name, so a hash keeps their stores apart.
  name = path.parent.name if path.name == VOCABULARY else path.stem
  return os.path.join(cache_dir, f'{name}-{sha256[:8]}{ending}')


def is_prepared(
  directory: str,
  wanted: Sequence[tuple[str, Sequence[str] | None]],
  vocab_size: int | None = None,
) -> bool:
  """Whether all stores exist and are up to date.

  Args:
    directory: directory of the vocabulary.
    wanted: (task or mixture, its splits) pairs, as in `tasks.stores.prepare`.
    vocab_size: number of pieces of the vocabulary; None if it is not trained.

  Returns:
    False if `tasks.stores.prepare` may have to make something.
  """
  if vocab_size is not None and vocabulary_outdated(directory):
    return False
  return all(_has_stores(directory, *pair) for pair in wanted)


def _has_stores(
  directory: str, task: str, splits: Sequence[str] | None
) -> bool:
  path = os.path.join(directory, task, MIXTURE)
  if os.path.isfile(path):
    with open(path) as f:
      mixture = json.load(f)
    if _mixture_changed(task, mixture):
      return False
    splits = splits or [s for s in DEFAULT_SPLITS if s in mixture['splits']]
  try:
    stores = [
      store
      for split in splits or DEFAULT_SPLITS
      for store in find_stores(directory, task, split)[0]
    ]
  except ValueError:
    return False
  parts = [pathlib.Path(store).parts[-2:] for store in stores]
  return not any(store_outdated(directory, *part) for part in parts)


def _mixture_changed(name: str, mixture: dict) -> bool:
  """Whether the tasks or splits of a mixture may differ from those in its file.

  Of the rates, only declared ones need a check. Any other rate is the size of a
  task. If that size may have changed, the task's store is outdated anyway.
  """
  modules.load()
  if name not in registry.MIXTURES or name in modules.MODULE_OF:
    # A training process imports neither users' modules nor seqio, so it cannot
    # look up the tasks of the mixture. It compares the hash of all code that
    # declares tasks.
    return mixture['tasks_sha256'] != tasks_sha256()
  if registry.RATES.get(name, mixture['rates']) != mixture['rates']:
    return True
  splits = registry.splits_of(name)
  return {*mixture['rates']} != {*registry.MIXTURES[name]} or any(
    {*mixture['splits'].get(split, ())} != {*splits.get(split, ())}
    for split in mixture['splits'].keys() | splits.keys()
  )


def store_outdated(directory: str, task_name: str, split: str) -> str | None:
  """The reason why a store has to be made (again); None if it is up to date."""
  store = os.path.join(directory, task_name, split)
  vocabulary = os.path.join(directory, VOCABULARY)
  if not is_store(store) or not os.path.isfile(vocabulary):
    return 'it is not there'
  try:
    manifest = Store(store).manifest
  except ValueError:
    return 'it is damaged, or of another version'
  if manifest['vocabulary_sha256'] != file_sha256(vocabulary):
    return 'the vocabulary is another one'
  return _origin_outdated(manifest.get('origin'))


def vocabulary_outdated(directory: str) -> str | None:
  """The reason why a vocabulary must be trained; None if it is up to date."""
  if not os.path.isfile(os.path.join(directory, VOCABULARY)):
    return 'it is not there'
  try:
    with open(os.path.join(directory, TRAINED_ON)) as f:
      return _origin_outdated(json.load(f))
  except (OSError, ValueError):
    return _origin_outdated(None)


def _origin_outdated(recorded: dict | None) -> str | None:
  if recorded is None:
    return 'it does not say what it was made of'
  changed = origin.changed(recorded)
  return changed and f'{changed} has changed'


def tasks_sha256() -> str:
  """Hash of all code that declares tasks: this package and users' modules."""
  package = pathlib.Path(importlib.util.find_spec('tasks').origin).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
  for path in map(pathlib.Path, origin.code(*modules.named())):
    if not path.is_relative_to(package):
      digest.update(path.name.encode() + path.read_bytes())
  return digest.hexdigest()
