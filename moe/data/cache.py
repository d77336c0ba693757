"""From a seqio task to a token store: the one place of `moe` that knows seqio.

seqio imports TensorFlow, which training must not need: so both are imported
inside the functions here, and a training process calls none of them.
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
# Documents after which a corpus that is bad throughout is given up.
_CHECK_EVERY = 10_000
_FEATURES = ('inputs', 'targets')


def resolve(name: str) -> list[tuple[str, float]]:
  """The tasks of a registered mixture with their rates; a task is its own.

  Args:
    name: of a seqio task or mixture.

  Returns:
    (task name, rate) in the order of the names. Rates that are functions are
    called, which may read the corpora.

  Raises:
    ValueError: if there is neither a task nor a mixture of that name.
  """
  provider = _provider(name)
  if not hasattr(provider, 'get_rate'):  # Only mixtures have rates.
    return [(name, 1.0)]
  return [(task.name, provider.get_rate(task)) for task in provider.tasks]


def splits(name: str) -> dict[str, list[str]]:
  """Splits of a task or mixture, each with the names of the tasks that have it.

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
  """Texts of a task, or of a mixture's tasks one after the other, in order.

  Args:
    name: of a seqio task or mixture.
    split: of it.

  Yields:
    {'targets': text}, with 'inputs' before it if the task has a prompt. What is
    no UTF-8 is left out here; `cache_task` counts it.

  Raises:
    ValueError: if the task, the split or its files are missing.
  """
  import seqio

  for task_name in tasks_with(name, split):
    # Bytes stand in for the vocabulary, which may be trained on these texts.
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

  The task's features are tokenised with `vocabulary_path`, whatever vocabulary
  the task names, pass-through ids excepted. A document is ids(inputs) +
  ids(targets) + [eos], of which the inputs have weight 0. Ids are decoded and
  compared with the text of every document. A document whose target is empty is
  left out and counted.

  A record has `tokens` (uint16, or int32 where ids need it), `num_chars` and
  `num_bytes` of what is scored, and `loss_weights` (uint8) if there are inputs.

  Args:
    task_name: of a registered seqio task.
    split: of it.
    cache_dir: directory of the stores of this vocabulary.
    vocabulary_path: file of the vocabulary.
    max_bad_fraction: of the documents, those that may be malformed.
    on_progress: called with the number of documents read, from time to time.

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
    malformed: left out because they are no UTF-8 or do not survive the
      vocabulary.
    respelt: whose ids were not the task's, because of a U+2581 in the text.
    scored_tokens: with weight 1, end marks included.
    chars: Unicode code points of the scored text, end marks not counted.
    bytes: the same in UTF-8.
    unknown_tokens: of all tokens.
    byte_tokens: of all tokens, those that are one byte of a character.
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

  def __init__(self, name, vocabulary, max_bad_fraction, on_progress):
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
    """Ids that decode to the text: the given ones if they do."""
    decoded = self._vocabulary.decode(ids)
    if decoded == text:
      return ids
    # TensorFlow's SentencePiece takes U+2581 for a space.
    if decoded == text.replace('\u2581', ' '):
      self.counts.respelt += 1
      return self._vocabulary.encode(text)
    raise ValueError(f'{text[:40]!r} came back as {decoded[:40]!r}')

  def _counted(self, prompt, target, scored: str) -> Record:
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
  """A registered task or mixture; ValueError with the nearest names."""
  import seqio

  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    if name in registry.names():
      return registry.get(name)
  names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
  near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
  hint = f'did you mean {" or ".join(near)}?' if near else 'see them with'
  raise ValueError(
    f'A task or mixture must be registered, got {name!r}: {hint}'
    + ('' if near else ' `python -m launch.data list`.')
  )


def _examples(task_name: str, split: str, vocabulary) -> Iterator[dict]:
  """Examples of a task in order, its text features in another vocabulary.

  A source may have `documents(split)`, which gives its texts by feature as
  Python strings. A task that only tokenises is read that way, and has texts but
  no ids.
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
    # Strings out of Python and back take tf.data a hundred times as long.
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
    # The last line has what happened, before it stands where in TensorFlow.
    reason = (str(error.message).strip().splitlines() or [repr(error)])[-1]
    raise ValueError(
      f'{task_name}/{split} must be readable to its end, got {reason}: mend its'
      ' files.'
    ) from error
