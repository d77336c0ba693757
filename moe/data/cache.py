"""From a seqio task to a token store: the one file of `moe` that knows seqio.

seqio imports TensorFlow, which training must not need. So the functions here
import both when they are called, and a training process calls none of them.
"""

import dataclasses
import difflib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from moe.data.store import Record, Store, write_store
from moe.modalities.vocabulary import EOS, UNK, Vocabulary

MAX_BAD_FRACTION = 1e-4
# Documents between two looks at the share of malformed ones.
_CHECK_EVERY = 10_000
_FEATURES = ('inputs', 'targets')


def resolve(name: str) -> list[tuple[str, float]]:
  """The tasks of a registered mixture with their rates; a task has the rate 1.

  Args:
    name: of a seqio task or mixture.

  Returns:
    (task name, rate) for each task. A rate that is a function is called, which
    may read the corpora.

  Raises:
    ValueError: if there is neither a task nor a mixture of that name.
  """
  provider = _provider(name)
  if not hasattr(provider, 'get_rate'):  # Only mixtures have rates.
    return [(name, 1.0)]
  return [(task.name, provider.get_rate(task)) for task in provider.tasks]


def splits(name: str) -> dict[str, list[str]]:
  """Splits of a task or mixture, and the tasks that have each of them.

  Args:
    name: of a seqio task or mixture.

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
  """Texts of a task, or of the tasks of a mixture one after the other.

  Args:
    name: of a seqio task or mixture.
    split: name of the split.

  Yields:
    {'targets': text}, with 'inputs' before it if the task has a prompt. A text
    that is no UTF-8 is left out here; `cache_task` counts it.

  Raises:
    ValueError: if the task, the split or its files are missing.
  """
  import seqio

  for task_name in tasks_with(name, split):
    # Bytes stand in for a vocabulary, which may not be trained yet.
    for example in _examples(task_name, split, seqio.ByteVocabulary()):
      try:
        yield {key: text for key, text in _texts(example) if text is not None}
      except UnicodeDecodeError:
        continue


def cache_task(
  task_name: str,
  split: str,
  cache_dir: str | os.PathLike,
  vocabulary_path: str | os.PathLike,
  max_bad_fraction: float = MAX_BAD_FRACTION,
  on_progress: Callable[[int], None] = lambda num_documents: None,
) -> dict:
  """Tokenises a split of a task into the store <cache_dir>/<task>/<split>.

  The features of the task are tokenised with `vocabulary_path` in place of the
  vocabulary that the task names; features of ids are kept as they are. A
  document is ids(inputs) + ids(targets) + [eos], and the inputs have weight 0.
  The ids of every document are decoded and compared with its text. A document
  whose target is empty is left out and counted.

  A record has `tokens` (uint16, or int32 for large ids), `num_chars` and
  `num_bytes` of the scored text, and `loss_weights` (uint8) if it has inputs.

  Args:
    task_name: of a registered seqio task.
    split: name of the split.
    cache_dir: directory of the stores of this vocabulary.
    vocabulary_path: file of the vocabulary.
    max_bad_fraction: share of the documents that may be malformed.
    on_progress: called from time to time with the number of documents read.

  Returns:
    The manifest.

  Raises:
    ValueError: if task, split or files are missing or too many documents are
      malformed. A store is written whole or not at all.
  """
  import seqio
  import tensorflow as tf

  vocabulary = Vocabulary(vocabulary_path)
  tokeniser = _Tokeniser(
    f'{task_name}/{split}', vocabulary, max_bad_fraction, on_progress
  )
  tasks_with(task_name, split)
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


@dataclasses.dataclass
class Counts:
  """What became of the documents of a source.

  Attributes:
    documents: read from the source.
    empty: left out because nothing is to be scored.
    malformed: left out because they are no UTF-8, or because the vocabulary
      does not give their text back.
    respelt: tokenised again because the task lost a U+2581 of the text.
    scored_tokens: tokens with weight 1, end marks included.
    chars: Unicode code points of the scored text, end marks not counted.
    bytes: bytes of the scored text in UTF-8.
    unknown_tokens: tokens of all documents that are the unknown token.
    byte_tokens: tokens of all documents that are one byte of a character.
  """

  documents: int = 0
  empty: int = 0
  malformed: int = 0
  respelt: int = 0
  scored_tokens: int = 0
  chars: int = 0
  bytes: int = 0
  unknown_tokens: int = 0
  byte_tokens: int = 0


class _Tokeniser:
  """Makes records of examples, and counts."""

  def __init__(
    self,
    name: str,
    vocabulary: Vocabulary,
    max_bad_fraction: float,
    on_progress: Callable[[int], None],
  ):
    self.counts = Counts()
    self._name = name
    self._vocabulary = vocabulary
    self._max_bad_fraction = max_bad_fraction
    self._on_progress = on_progress
    self._first_bad = None
    self._dtype = np.uint16 if vocabulary.size <= 1 << 16 else np.int32
    self._is_byte = np.array(
      [vocabulary.is_byte(id) for id in range(vocabulary.size)]
    )

  def records(self, examples: Iterable[dict]) -> Iterator[Record]:
    """Records of the examples; ValueError if too many are malformed."""
    counts = self.counts
    for example in examples:
      try:
        record = self._record(example)
        if record is not None:
          yield record
      except ValueError as error:  # UnicodeDecodeError is one.
        counts.malformed += 1
        if self._first_bad is None:
          self._first_bad = f'document {counts.documents}: {error}'
      counts.documents += 1
      if counts.documents % _CHECK_EVERY == 0:
        self._check_malformed()
        self._on_progress(counts.documents)
    self._check_malformed()

  def _check_malformed(self):
    counts = self.counts
    if counts.malformed > self._max_bad_fraction * counts.documents:
      raise ValueError(
        f'{self._name}: at most {self._max_bad_fraction:g} of the documents may'
        f' be malformed, got {counts.malformed} of {counts.documents}, the'
        f' first one {self._first_bad}; mend the source, or raise'
        ' max_bad_fraction.'
      )

  def _record(self, example: dict) -> Record | None:
    ids, texts = {}, dict(_texts(example))
    for feature, text in texts.items():
      if feature in example:
        ids[feature] = example[feature].tolist()
        if feature == 'targets' and ids[feature][-1:] == [EOS]:
          ids[feature].pop()
      elif text is not None:
        ids[feature] = self._vocabulary.encode(text)
      if text is not None:
        ids[feature] = self._spelt(ids[feature], text)
    if not ids.get('targets'):
      self.counts.empty += 1
      return None
    scored = texts['targets']
    if scored is None:
      scored = self._vocabulary.decode(ids['targets'])
    return self._counted(ids.get('inputs', []), ids['targets'] + [EOS], scored)

  def _spelt(self, ids: list[int], text: str) -> list[int]:
    """Ids that decode to the text: if possible those that are given."""
    decoded = self._vocabulary.decode(ids)
    if decoded == text:
      return ids
    # TensorFlow's SentencePiece takes U+2581 for a space.
    if decoded == text.replace('\u2581', ' '):
      self.counts.respelt += 1
      return self._vocabulary.encode(text)
    raise ValueError(f'{text[:40]!r} came back as {decoded[:40]!r}')

  def _counted(
    self, prompt: list[int], target: list[int], scored: str
  ) -> Record:
    """The record of a document, which is added to the counts."""
    counts = self.counts
    tokens = np.array(prompt + target)
    if not 0 <= tokens.min() <= tokens.max() < self._vocabulary.size:
      raise ValueError(
        f'ids from {tokens.min()} to {tokens.max()}, but the vocabulary has'
        f' {self._vocabulary.size}'
      )
    num_bytes = len(scored.encode())
    counts.scored_tokens += len(target)
    counts.chars += len(scored)
    counts.bytes += num_bytes
    counts.unknown_tokens += int((tokens == UNK).sum())
    counts.byte_tokens += int(self._is_byte[tokens].sum())
    record = {
      'tokens': tokens.astype(self._dtype),
      'num_chars': np.int64(len(scored)),
      'num_bytes': np.int64(num_bytes),
    }
    if prompt:
      weights = np.ones(tokens.size, np.uint8)
      weights[: len(prompt)] = 0
      record['loss_weights'] = weights
    return record


def _texts(example: dict) -> Iterator[tuple[str, str | None]]:
  """(feature, its text or None); UnicodeDecodeError if it is no UTF-8."""
  for feature in _FEATURES:
    text = example.get(f'{feature}_pretokenized')
    if isinstance(text, bytes):
      text = text.decode()
    yield feature, text if isinstance(text, str) else None


def _provider(name: str):
  """A registered task or mixture; ValueError with the nearest names if none."""
  import seqio

  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    if name in registry.names():
      return registry.get(name)
  names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  raise not_registered(name, names)


def not_registered(name: str, names: Iterable[str]) -> ValueError:
  """The error about a name that is not among the registered ones."""
  near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
  hint = f'did you mean {" or ".join(near)}?' if near else 'see them with'
  return ValueError(
    f'A task or mixture must be registered, got {name!r}: {hint}'
    + ('' if near else ' `python -m launch.data list`.')
  )


def _examples(task_name: str, split: str, vocabulary) -> Iterator[dict]:
  """Examples of a task in order, its texts tokenised with another vocabulary.

  A source may have `documents(split)`, which gives its texts by feature as
  Python strings. A task that only tokenises is read that way: its examples have
  texts but no ids.
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
    # With tf.data in between, reading would take a hundred times as long.
    for texts in task.source.documents(split):
      yield {f'{feature}_pretokenized': text for feature, text in texts.items()}
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
    # The last line says what happened; those before it say where.
    reason = (str(error.message).strip().splitlines() or [repr(error)])[-1]
    raise ValueError(
      f'{task_name}/{split} must be readable to its end, got {reason}: mend its'
      ' files.'
    ) from error
