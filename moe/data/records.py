"""Turns the examples of a task into records of a store, and counts them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from moe.data.store import Record
from moe.modalities.ids import EOS, UNK, IdSpace
from moe.modalities.text import Vocabulary

# The share of malformed documents is checked each time this many documents are
# read, and at the end.
_CHECK_EVERY = 10_000
_FEATURES = ('inputs', 'targets')


class Feature(NamedTuple):
  """A feature of a task that is not text.

  Attributes:
    range: name of a range in `moe.modalities.ids.RANGES`, for inputs or targets
      that are codes of this range. It has no effect on other features, which
      are stored unchanged, as arrays with one value per token.
    is_block: whether the whole feature is one block. Tokens of a block see each
      other. A block in the inputs is a condition. If the targets are a block, a
      transform must hide the tokens that are predicted.
    tokenizer: SHA-256 of the trained tokenizer that made the codes, if one was
      trained.
    grid: (rows, columns) of the codes of a picture. The record then has the
      arrays `row` and `column`, which count from 1 and are 0 for tokens that
      are no code. () if the codes lie in no grid.
    dtype: dtype of a further array.
    of: for a further array, the feature 'inputs' or 'targets' whose tokens have
      its values; all other tokens get 0. '' if it has a value for each token of
      inputs and targets.
  """

  range: str = ''
  is_block: bool = False
  tokenizer: str = ''
  grid: tuple[int, ...] = ()
  dtype: str = 'float32'
  of: str = ''


@dataclasses.dataclass
class Counts:
  """Counts of the documents of a source, and of what they contain.

  Attributes:
    documents: documents that were read.
    empty: documents left out because they have nothing to score.
    malformed: documents left out because they are not UTF-8, because an id is
      out of its range, because the ids do not decode to the text, or because an
      array has a wrong size.
    respelt: inputs and targets tokenised again because the task's tokeniser
      replaced a U+2581 by a space.
    scored_tokens: tokens with weight 1, end marks included.
    chars: Unicode code points of the scored text, end marks not counted. Each
      code that is not text, such as a code of a picture, counts as one.
    bytes: bytes of the scored text in UTF-8; such a code counts as one.
    unknown_tokens: how often the unknown token occurs, also in the inputs.
    byte_tokens: how often tokens for a single byte occur, also in the inputs.
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


class Tokeniser:
  """Makes records from examples, and counts what it makes."""

  def __init__(
    self,
    name: str,
    vocabulary: Vocabulary,
    max_bad_fraction: float,
    on_progress: Callable[[int], None],
    ids: IdSpace,
    features: Mapping[str, Feature],
  ):
    """Makes a tokeniser with all counts at zero.

    Args:
      name: name of the store, for messages.
      vocabulary: tokenises the texts.
      max_bad_fraction: share of the documents that may be malformed.
      on_progress: called from time to time with the number of documents read.
      ids: the id space, which maps codes to ids.
      features: name -> feature, for the features that are not text.
    """
    self.counts = Counts()
    self._name = name
    self._vocabulary = vocabulary
    self._max_bad_fraction = max_bad_fraction
    self._on_progress = on_progress
    self._ids = ids
    self._features = features
    self._first_bad = None
    self._dtype = np.uint16 if ids.size <= 1 << 16 else np.int32
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
      except ValueError as error:  # This includes UnicodeDecodeError.
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
        f' first one {self._first_bad}: repair the source, or raise'
        ' max_bad_fraction.'
      )

  def _record(self, example: dict) -> Record | None:
    ids, texts = {}, dict(texts_of(example))
    for feature, text in texts.items():
      if feature in self._features:
        texts[feature] = None
        codes = np.ravel(example[feature])
        ids[feature] = self._ids.ids(
          self._features[feature].range, codes
        ).tolist()
        continue
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
    prompt, target = ids.get('inputs', []), ids['targets']
    if 'targets' in self._features:
      size = num_bytes = len(target)
    else:
      scored = texts['targets']
      if scored is None:
        scored = self._vocabulary.decode(target)
      size, num_bytes = len(scored), len(scored.encode())
    arrays = (
      self._blocks(prompt, target)
      | self._places(prompt, target)
      | self._rest(example, len(prompt), len(target))
    )
    # `_counted` comes last, so that it counts no malformed document.
    return self._counted(prompt, target + [EOS], size, num_bytes) | arrays

  def _spelt(self, ids: list[int], text: str) -> list[int]:
    """Returns `ids` if they decode to `text`, or new ids if U+2581 was lost."""
    decoded = self._vocabulary.decode(ids)
    if decoded == text:
      return ids
    # TensorFlow's SentencePiece reads U+2581 as a space, so its ids are wrong.
    if decoded == text.replace('\u2581', ' '):
      self.counts.respelt += 1
      return self._vocabulary.encode(text)
    raise ValueError(
      f'the vocabulary must give {text[:40]!r} back, got {decoded[:40]!r}'
    )

  def _counted(
    self, prompt: list[int], target: list[int], num_chars: int, num_bytes: int
  ) -> Record:
    """Makes the record of a document, and adds the document to the counts."""
    counts = self.counts
    tokens = np.array(prompt + target)
    if self._ids.unknown(tokens).size:
      raise ValueError(
        f'ids from {tokens.min()} to {tokens.max()}, but the vocabulary has'
        f' {self._ids}'
      )
    counts.scored_tokens += len(target)
    counts.chars += num_chars
    counts.bytes += num_bytes
    counts.unknown_tokens += int((tokens == UNK).sum())
    counts.byte_tokens += int(
      self._is_byte[self._ids.codes('text', tokens)].sum()
    )
    record = {
      'tokens': tokens.astype(self._dtype),
      'num_chars': np.int64(num_chars),
      'num_bytes': np.int64(num_bytes),
    }
    if prompt:
      weights = np.ones(tokens.size, np.uint8)
      weights[: len(prompt)] = 0
      record['loss_weights'] = weights
    return record

  def _blocks(self, prompt: list[int], target: list[int]) -> Record:
    """{'block_ids': array} of a document; {} if it has no block."""
    block_ids = np.zeros(len(prompt) + len(target) + 1, np.uint8)
    for number, feature in enumerate(_FEATURES, start=1):
      if feature in self._features and self._features[feature].is_block:
        first = 0 if feature == 'inputs' else len(prompt)
        size = len(prompt) if feature == 'inputs' else len(target)
        block_ids[first : first + size] = number
    return {'block_ids': block_ids} if block_ids.any() else {}

  def _places(self, prompt: list[int], target: list[int]) -> Record:
    """{'row': array, 'column': array} of a document; {} without a grid."""
    parts, has_grid = [], False
    for feature, ids in zip(_FEATURES, (prompt, target), strict=True):
      grid = self._features.get(feature, Feature()).grid
      has_grid |= bool(grid)
      parts.append(places(len(ids), grid))
    if not has_grid:
      return {}
    # The end mark lies in no grid.
    row, column = np.concatenate([*parts, places(1, ())], axis=1)
    return {'row': row, 'column': column}

  def _rest(self, example: dict, num_inputs: int, num_targets: int) -> Record:
    """Name -> array, for features other than inputs and targets.

    The end mark has the value 0.
    """
    size, rest = num_inputs + num_targets, {}
    spans = {
      '': (0, size),
      'inputs': (0, num_inputs),
      'targets': (num_inputs, size),
    }
    for name in self._features.keys() - set(_FEATURES):
      array = np.asarray(example[name], self._features[name].dtype)
      first, end = spans[self._features[name].of]
      if array.shape[:1] != (end - first,):
        raise ValueError(
          f'{name} must have a value for each of {end - first} tokens without'
          f' the end mark, got shape {array.shape}'
        )
      rest[name] = np.zeros((size + 1, *array.shape[1:]), array.dtype)
      rest[name][first:end] = array
    return dict(sorted(rest.items()))


def places(size: int, grid: tuple[int, ...]) -> np.ndarray:
  """Row and column of each code of a picture, uint8 [2, size], from 1.

  Args:
    size: number of codes.
    grid: (rows, columns); () gives zeros.

  Raises:
    ValueError: if the codes do not fill the grid.
  """
  if not grid:
    return np.zeros((2, size), np.uint8)
  if size != grid[0] * grid[1]:
    raise ValueError(
      f'{size} codes of a picture, but its grid has {grid[0]} x {grid[1]}'
    )
  return 1 + np.stack(np.divmod(np.arange(size), grid[1])).astype(np.uint8)


def texts_of(example: dict) -> Iterator[tuple[str, str | None]]:
  """(feature, its text or None); UnicodeDecodeError if a text is not UTF-8."""
  for feature in _FEATURES:
    text = example.get(f'{feature}_pretokenized')
    if isinstance(text, bytes):
      text = text.decode()
    yield feature, text if isinstance(text, str) else None
