"""Tokenises a seqio task into a token store; no other file of `moe` uses seqio.

seqio imports TensorFlow, which training must not need. So the functions here
import them only when called, and a training process calls none of them.
"""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Mapping

from moe.data import task_names
from moe.data.records import Feature, Tokeniser, texts_of
from moe.data.store import Store, write_store
from moe.modalities.ids import of_ranges
from moe.modalities.text import Vocabulary

MAX_BAD_FRACTION = 1e-4


def resolve(name: str) -> list[tuple[str, float]]:
  """The tasks of a task or mixture with their rates; a task alone has rate 1.

  Args:
    name: name of a seqio task or mixture.

  Returns:
    (task name, rate) for each task. If a mixture gives a function as a rate,
    this calls the function, which may read the corpora.

  Raises:
    ValueError: if there is neither a task nor a mixture of that name.
  """
  provider = _provider(name)
  if not hasattr(provider, 'get_rate'):  # Only mixtures have rates.
    return [(name, 1.0)]
  return [(task.name, provider.get_rate(task)) for task in provider.tasks]


def splits(name: str) -> dict[str, list[str]]:
  """Splits of a task or mixture, and the tasks that have each split.

  Args:
    name: name of a seqio task or mixture.

  Returns:
    split -> task names.

  Raises:
    ValueError: if there is neither a task nor a mixture of that name.
  """
  provider = _provider(name)
  found = {}
  for task in getattr(provider, 'tasks', [provider]):
    for split in task.splits:
      found.setdefault(str(split), []).append(task.name)
  return found


def tasks_with(name: str, split: str) -> list[str]:
  """Names of the tasks of a task or mixture that have a split.

  Raises:
    ValueError: if the name is not registered or none of its tasks has the
      split.
  """
  found = splits(name)
  if split not in found:
    raise ValueError(
      f'The split of {name} must be one of {", ".join(sorted(found))}, got'
      f' {split!r}.'
    )
  return found[split]


def documents(name: str, split: str) -> Iterator[dict[str, str]]:
  """Texts of a task, or of all tasks of a mixture, one task after the other.

  Args:
    name: name of a seqio task or mixture.
    split: name of the split.

  Yields:
    {'targets': text}, with 'inputs' before it if the task has a prompt. A
    document that is not UTF-8 is left out here; `cache_task` counts it.

  Raises:
    ValueError: if the task, the split or its files are missing.
  """
  import seqio

  for task_name in tasks_with(name, split):
    # The trained vocabulary may not exist yet. The texts do not depend on the
    # vocabulary, so we use one of bytes.
    for example in _examples(task_name, split, seqio.ByteVocabulary()):
      try:
        yield {key: text for key, text in texts_of(example) if text is not None}
      except UnicodeDecodeError:
        continue


def cache_task(
  task_name: str,
  split: str,
  cache_dir: str | os.PathLike,
  vocabulary_path: str | os.PathLike,
  max_bad_fraction: float = MAX_BAD_FRACTION,
  on_progress: Callable[[int], None] = lambda num_documents: None,
  ranges: Mapping[str, int] | None = None,
) -> dict:
  """Tokenises a split of a task into the store <cache_dir>/<task>/<split>.

  Texts of the task are tokenised with `vocabulary_path` instead of the task's
  own vocabulary. A document is ids(inputs) + ids(targets) + [eos], and the
  inputs have weight 0. The ids of every text are decoded and compared with the
  text. A document with an empty target is left out and counted.

  Inputs or targets are codes of another range of the id space if their
  vocabulary has the attribute `range`, and perhaps `is_block`, `tokenizer` and
  `grid`; see `moe.data.records.Feature`. Other features are kept as arrays with
  one value per token.

  A record has `tokens` (uint16, or int32 for large ids), `num_chars` and
  `num_bytes` of the scored text, `loss_weights` (uint8) if it has inputs,
  `block_ids` (uint8) if it has a block, and `row` and `column` (uint8) if it
  has codes in a grid.

  Args:
    task_name: name of a registered seqio task.
    split: name of the split.
    cache_dir: directory of the stores of this vocabulary.
    vocabulary_path: file of the vocabulary.
    max_bad_fraction: share of the documents that may be malformed.
    on_progress: called from time to time with the number of documents read.
    ranges: name -> size of the ranges of ids other than text.

  Returns:
    The manifest.

  Raises:
    ValueError: if the task, the split, the vocabulary or a file is missing or
      broken, if no document has a target, or if too many documents are
      malformed. A store is written whole or not at all.
  """
  import seqio
  import tensorflow as tf

  vocabulary = Vocabulary(vocabulary_path)
  tasks_with(task_name, split)
  features = _features(task_name)
  tokenizers = {f.range: f.tokenizer for f in features.values() if f.tokenizer}
  ids = of_ranges(vocabulary.size, ranges or {}, tokenizers)
  tokeniser = Tokeniser(
    f'{task_name}/{split}',
    vocabulary,
    max_bad_fraction,
    on_progress,
    ids,
    features,
  )
  examples = _examples(
    task_name, split, seqio.SentencePieceVocabulary(vocabulary.path)
  )

  def manifest():
    source = _provider(task_name).source
    return {
      'task': task_name,
      'split': split,
      'source': str(getattr(source, 'source', source)),
      'counts': dataclasses.asdict(tokeniser.counts),
      'vocab_size': vocabulary.size,
      'vocabulary_sha256': vocabulary.sha256,
      **ids.in_manifest(),
      'versions': {
        'python': platform.python_version(),
        'tensorflow': tf.__version__,
        **{
          package: importlib.metadata.version(package)
          for package in ('array-record', 'numpy', 'seqio', 'sentencepiece')
        },
      },
    }

  directory = os.path.join(cache_dir, task_name, split)
  write_store(directory, tokeniser.records(examples), manifest)
  return Store(directory).manifest


def _features(task_name: str) -> dict[str, Feature]:
  """The features of a task that are not text."""
  vocabularies = {
    name: feature.vocabulary
    for name, feature in _provider(task_name).output_features.items()
  }
  return {
    name: Feature(
      getattr(vocabulary, 'range', ''),
      getattr(vocabulary, 'is_block', False),
      getattr(vocabulary, 'tokenizer', ''),
      getattr(vocabulary, 'grid', ()),
      getattr(vocabulary, 'array_dtype', 'float32'),
      getattr(vocabulary, 'of', ''),
    )
    for name, vocabulary in vocabularies.items()
    if hasattr(vocabulary, 'range') or name not in ('inputs', 'targets')
  }


def _provider(name: str):
  """Finds a registered task or mixture; the ValueError lists similar names."""
  import seqio

  tasks, mixtures = seqio.TaskRegistry, seqio.MixtureRegistry
  task_names.check(name, {*tasks.names(), *mixtures.names()})
  return (tasks if name in tasks.names() else mixtures).get(name)


def _examples(task_name: str, split: str, vocabulary) -> Iterator[dict]:
  """Examples of a task in order.

  If the task does nothing but tokenise, and its source has the method
  `documents`, the examples are those of this method, not tokenised. Else seqio
  makes the examples, and tokenises their texts with `vocabulary`.
  """
  import seqio
  import tensorflow as tf

  task = _provider(task_name)
  only_tokenise = {
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
    seqio.preprocessors.tokenize_and_append_eos,
  }
  if hasattr(task.source, 'documents') and only_tokenise >= {
    *task.preprocessors
  }:
    # Reading through tf.data would take a hundred times as long.
    for parts in task.source.documents(split):
      yield {
        f'{name}_pretokenized' if isinstance(part, str) else name: part
        for name, part in parts.items()
      }
    return
  features = {
    name: feature
    if isinstance(feature.vocabulary, seqio.PassThroughVocabulary)
    else dataclasses.replace(feature, vocabulary=vocabulary)
    for name, feature in task.output_features.items()
  }
  dataset = task.replace(output_features=features).get_dataset(
    sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False
  )
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as error:
    # The last line of the message says what happened, the others say where.
    reason = (str(error.message).strip().splitlines() or [repr(error)])[-1]
    raise ValueError(
      f'{task_name}/{split} must be readable to its end, got {reason}: repair'
      ' its files.'
    ) from error
