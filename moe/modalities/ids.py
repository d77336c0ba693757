"""One id space for all that a model reads: text, commands, codes, residues.

Each kind of token has one range of ids. The ranges come in the order of
`RANGES`. Text is always first and has the ids of the vocabulary, so a store of
text is valid in every space with the same vocabulary. If there are other
ranges, each range is padded to a multiple of 128; text alone is not padded. A
new range is appended to `RANGES`, never put between others, so that old ids
keep their meaning.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PAD, EOS, UNK = 0, 1, 2
# The numbers of the modalities in a batch, see `moe.types.TokenBatch`.
TEXT, IMAGE, PROTEIN = 0, 1, 2
# Range -> modality of its tokens.
RANGES = {
  'text': TEXT,
  'command': TEXT,
  'image': IMAGE,
  'residue': PROTEIN,
  'structure': PROTEIN,
}
# The first code of the range 'command'. A model reads this command in place of
# a hidden token.
MASK = 0
# Name of the further array of a document with the pixels at each code's place.
PATCHES = 'patches'
_MULTIPLE = 128
# Key of the id space in the manifest of a store; a store of text has no entry.
_KEY = 'ids'
# Key of the hashes of tokenizers, inside the entry of the id space.
_TOKENIZERS = 'tokenizers'


@dataclasses.dataclass(frozen=True)
class IdSpace:
  """The number of ids of each range; 0 if the range is empty.

  Attributes:
    text: pieces of the vocabulary, with PAD, EOS and UNK among them.
    command: marks that are not text; `MASK` is the first.
    image: codes of an image tokenizer.
    residue: amino acids.
    structure: letters of a structure alphabet.
    tokenizers: (range, SHA-256) of each trained tokenizer. In another tokenizer
      the same code means something else.
  """

  text: int
  command: int = 0
  image: int = 0
  residue: int = 0
  structure: int = 0
  tokenizers: tuple[tuple[str, str], ...] = ()

  def __post_init__(self):
    sizes = self.sizes
    if self.text <= UNK or min(sizes.values()) < 0:
      raise ValueError(
        f'An id space must have more than {UNK} ids of text and no negative'
        f' size, got {sizes}: change the sizes.'
      )

  @property
  def sizes(self) -> dict[str, int]:
    """The number of ids of each range."""
    return {name: getattr(self, name) for name in RANGES}

  @functools.cached_property
  def _spans(self) -> dict[str, tuple[int, int]]:
    """Name of each range with ids -> (first id, one past the last id)."""
    spans, begin = {}, 0
    for name, size in self.sizes.items():
      if size:
        spans[name] = begin, begin + size
        begin += -(-size // _MULTIPLE) * _MULTIPLE
    return spans

  @property
  def is_text(self) -> bool:
    """Whether text is the only range."""
    return list(self._spans) == ['text']

  @property
  def size(self) -> int:
    """Number of ids with padding; an embedding table needs as many rows."""
    if self.is_text:
      return self.text
    last = max(end for _, end in self._spans.values())
    return -(-last // _MULTIPLE) * _MULTIPLE

  def begin(self, name: str) -> int:
    """The first id of a range that is not empty."""
    return self._spans[name][0]

  def range_of(self, ids: Any) -> Any:
    """For each id, the index of its range among the ranges that are not empty.

    Args:
      ids: integers, an array of numpy or of jax. An id of padding belongs to
        the range before it.

    Returns:
      int32 of the same kind and shape.
    """
    begins = [begin for begin, _ in self._spans.values()]
    number = (ids * 0).astype('int32')
    for begin in begins[1:]:
      number = number + (ids >= begin).astype('int32')
    return number

  @property
  def mask(self) -> int:
    """The id that is read in place of a hidden token."""
    return int(self.ids('command', np.array([MASK]))[0])

  @property
  def sha256(self) -> str:
    """Hash of the ids of every range, and of the trained tokenizers."""
    spans = [[name, *span] for name, span in self._spans.items()]
    spans += [list(pair) for pair in sorted(self.tokenizers)]
    return hashlib.sha256(json.dumps(spans).encode()).hexdigest()

  def __str__(self) -> str:
    if self.is_text:
      return str(self.text)
    return ', '.join(
      f'{name} {begin}-{end - 1}' for name, (begin, end) in self._spans.items()
    )

  def ids(self, name: str, codes: np.ndarray) -> np.ndarray:
    """Converts codes of a range into ids.

    Args:
      name: name of the range.
      codes: codes from the tokenizer of the range, which start at 0.

    Returns:
      int64 of the same shape.

    Raises:
      ValueError: if the range is empty, or a code is outside of it.
    """
    if name not in self._spans:
      raise ValueError(
        f'The id space must have a range {name!r}, got {self}: give it a size.'
      )
    begin, end = self._spans[name]
    codes = np.asarray(codes, np.int64)
    if codes.size and not 0 <= codes.min() <= codes.max() < end - begin:
      raise ValueError(
        f'Codes of the range {name!r} must be from 0 to {end - begin - 1}, got'
        f' {codes.min()} to {codes.max()}: make the range larger, or correct'
        ' the tokenizer.'
      )
    return codes + begin

  def codes(self, name: str, ids: np.ndarray) -> np.ndarray:
    """Converts the ids of a range into codes; all other ids are left out."""
    begin, end = self._spans.get(name, (0, 0))
    ids = np.asarray(ids, np.int64)
    return ids[(ids >= begin) & (ids < end)] - begin

  def unknown(self, ids: np.ndarray) -> np.ndarray:
    """The ids that belong to no range."""
    ids = np.asarray(ids)
    is_known = np.zeros(ids.shape, bool)
    for begin, end in self._spans.values():
      is_known |= (ids >= begin) & (ids < end)
    return ids[~is_known]

  def modality(self, ids: Any) -> Any:
    """The modality of each id: text, image or protein.

    Args:
      ids: int32, an array of numpy or of jax.

    Returns:
      int32 of the same kind and shape.
    """
    modality, before = (ids * 0).astype('int32'), TEXT
    for name, (begin, _) in self._spans.items():
      if RANGES[name] != before:
        step = RANGES[name] - before
        modality = modality + (ids >= begin).astype('int32') * step
        before = RANGES[name]
    return modality

  def in_manifest(self) -> dict[str, Any]:
    """The entry for a store's manifest; empty if text is the only range."""
    if self.is_text:
      return {}
    found = {**self.sizes, 'sha256': self.sha256}
    if self.tokenizers:
      found[_TOKENIZERS] = dict(self.tokenizers)
    return {_KEY: found}


def of_ranges(
  text: int,
  ranges: Mapping[str, int],
  tokenizers: Mapping[str, str] | None = None,
) -> IdSpace:
  """Makes an id space from a vocabulary and other ranges of ids.

  Args:
    text: number of pieces of the vocabulary.
    ranges: sizes of the other ranges by name, for example 'image'.
    tokenizers: SHA-256 of trained tokenizers by name of the range.

  Raises:
    ValueError: if a name is no range beside text, or if a size is too small.
  """
  wrong = ranges.keys() - (RANGES.keys() - {'text'})
  if wrong:
    raise ValueError(
      f'Ranges beside text must be among {", ".join(list(RANGES)[1:])}, got'
      f' {", ".join(sorted(wrong))}: change the name.'
    )
  pairs = tuple(sorted((tokenizers or {}).items()))
  return IdSpace(text, **ranges, tokenizers=pairs)


def text_room(num_ids: int, ranges: Mapping[str, int]) -> int:
  """The largest vocabulary that fits into a space beside other ranges.

  Args:
    num_ids: number of ids of the whole space.
    ranges: sizes of the other ranges.
  """
  if not ranges:
    return num_ids
  others = of_ranges(_MULTIPLE, ranges).size - _MULTIPLE
  return (num_ids - others) // _MULTIPLE * _MULTIPLE


def of_manifest(manifest: Mapping[str, Any]) -> IdSpace:
  """The id space of a store.

  Args:
    manifest: manifest of the store.

  Raises:
    ValueError: if the ranges began at other ids when the store was made.
  """
  if _KEY not in manifest:
    return IdSpace(manifest['vocab_size'])
  sizes = dict(manifest[_KEY])
  sha256 = sizes.pop('sha256')
  tokenizers = tuple(sorted(sizes.pop(_TOKENIZERS, {}).items()))
  space = IdSpace(**sizes, tokenizers=tokenizers)
  if space.sha256 != sha256:
    raise ValueError(
      f'The ids of a store must lie in {space} (SHA-256 {space.sha256[:12]}),'
      f' got those of another layout ({sha256[:12]}): make the store again.'
    )
  return space


def shared(spaces: Iterable[IdSpace]) -> IdSpace:
  """The id space that several stores have in common.

  A space that has only text fits any other. A store without pictures need not
  name an image tokenizer, even if another store does.

  Raises:
    ValueError: if ranges or tokenizers differ.
  """
  spaces = list(spaces)
  mixed = [space for space in spaces if not space.is_text]
  if not mixed:
    return spaces[0]
  tokenizers = {}
  for space in mixed:
    if space.sizes != mixed[0].sizes:
      raise ValueError(
        'All stores of a mixture must share one id space, got'
        f' {mixed[0]}; and {space}: cache them with the same ranges.'
      )
    for name, sha256 in space.tokenizers:
      other = tokenizers.setdefault(name, sha256)
      if other != sha256:
        raise ValueError(
          f'All codes of the range {name!r} must be of one tokenizer, got those'
          f' of {other[:12]} and of {sha256[:12]}: encode them with the same'
          ' tokenizer.'
        )
  return of_ranges(
    mixed[0].text,
    {name: n for name, n in mixed[0].sizes.items() if name != 'text'},
    tokenizers,
  )
