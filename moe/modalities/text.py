"""Text as token ids, by a SentencePiece model that restores every string."""

import collections
import hashlib
import io
import itertools
import logging
import os
import random
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from moe import atomic_files
from moe.modalities.ids import EOS, PAD, UNK

# The most frequent characters get a piece each, until they cover this share of
# the text. The rest is spelt in bytes, so that training sees byte pieces too.
_COVERAGE = 0.9995
_MAX_LINES = 5_000_000
_MAX_LINE_CHARS = 4_000
# Pieces of every vocabulary: pad, eos, unk, 256 bytes, newline and space.
_NUM_FIXED = 3 + 1 + 256 + 1
# The smallest vocabulary has one character beside these pieces.
MIN_SIZE = _NUM_FIXED + 1
# SentencePiece writes a space as this character, so the character itself must
# be spelt in bytes.
SPACE_MARK = '\u2581'
# Characters that may not get a piece: SentencePiece reserves them in training.
_RESERVED = '\t\0\u2581\u2585'
_PROBE = 'a 中  ，\n\n\t\u2581字 '


class Vocabulary:
  """A trained SentencePiece model, with decode(encode(text)) == text always.

  Attributes:
    path: the model's file.
    size: number of pieces; an embedding may have more rows, never fewer.
    sha256: hash of the file, kept in token stores and checkpoints.
    pad, eos, unk: ids 0, 1, 2.
  """

  pad, eos, unk = PAD, EOS, UNK

  def __init__(self, path: str | os.PathLike):
    """Loads a model.

    Args:
      path: file written by `train_vocabulary`, or any SentencePiece model with
        pad/eos/unk = 0/1/2 that keeps text intact.

    Raises:
      ValueError: if the file is missing, is not such a model, or alters text.
    """
    self.path = os.fspath(path)
    if not os.path.isfile(self.path):
      raise ValueError(
        f'The vocabulary {self.path} must be a file, got nothing there: make'
        ' one with `python -m launch.data vocabulary`.'
      )
    with open(self.path, 'rb') as f:
      model = f.read()
    self.sha256 = hashlib.sha256(model).hexdigest()
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f'The vocabulary {self.path} must be a SentencePiece model, got'
        f' {error}: make one with `python -m launch.data vocabulary`.'
      ) from error
    self.size = self._processor.vocab_size()
    self._bytes = [self._piece_bytes(id) for id in range(self.size)]
    self._space_mark_ids = [
      self._processor.piece_to_id(f'<0x{byte:02X}>')
      for byte in SPACE_MARK.encode()
    ]
    self._check()

  def _check(self):
    processor = self._processor
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD, EOS, UNK):
      raise ValueError(
        f'The vocabulary {self.path} must have pad/eos/unk = 0/1/2, got'
        f' {"/".join(map(str, ids))}: train it with `python -m launch.data'
        ' vocabulary`.'
      )
    if self.decode(self.encode(_PROBE)) != _PROBE:
      raise ValueError(
        f'The vocabulary {self.path} must give text back intact (identity'
        ' normalisation, byte fallback, no dummy prefix), got'
        f' {self.decode(self.encode(_PROBE))!r} for {_PROBE!r}: train it with'
        ' `python -m launch.data vocabulary`.'
      )

  def _piece_bytes(self, id: int) -> bytes:
    processor = self._processor
    if processor.is_byte(id):
      return bytes([int(processor.id_to_piece(id)[3:5], 16)])
    if processor.is_unknown(id):
      return '\ufffd'.encode()
    if processor.is_control(id):
      return b''
    return processor.id_to_piece(id).replace(SPACE_MARK, ' ').encode()

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without an end mark.

    Args:
      text: any string, newlines and U+2581 included.

    Returns:
      Ids in [0, size).

    Raises:
      ValueError: if the text has a lone surrogate, which UTF-8 cannot hold.
    """
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        'A text must be valid Unicode, got the lone surrogate'
        f' {text[error.start]!r} at character {error.start}: remove it, or'
        ' decode the file with the right encoding.'
      ) from error
    first, *rest = text.split(SPACE_MARK)
    ids = self._processor.encode(first)
    for part in rest:
      ids += self._space_mark_ids + self._processor.encode(part)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of token ids, without end marks and padding.

    Bytes that are not UTF-8 become U+FFFD; a sampled text may end in such
    bytes.

    Args:
      ids: ids in [0, size).

    Returns:
      The text.

    Raises:
      ValueError: if an id is out of range.
    """
    pieces = self._bytes
    if len(ids) and not 0 <= min(ids) <= max(ids) < self.size:
      raise ValueError(
        f'Token ids must be from 0 to {self.size - 1}, got {min(ids)} to'
        f' {max(ids)}: use the vocabulary that made them.'
      )
    return b''.join([pieces[id] for id in ids]).decode('utf-8', 'replace')

  def is_byte(self, id: int) -> bool:
    """Whether a piece is a byte; rare characters are spelt in such pieces."""
    return self._processor.is_byte(id)

  def piece(self, id: int) -> str:
    """A piece as SentencePiece writes it."""
    return self._processor.id_to_piece(id)


def train_vocabulary(
  lines: Iterable[str],
  size: int,
  path: str | os.PathLike,
  model_type: str = 'bpe',
) -> Vocabulary:
  """Trains a vocabulary that keeps Chinese text intact, and writes its file.

  It is a SentencePiece model (Kudo and Richardson, 2018,
  https://arxiv.org/abs/1808.06226). Identity normalisation keeps full-width
  punctuation, newlines and all spaces as they are. Rare characters are spelt in
  bytes. The most frequent characters get a piece each, until they cover 99.95%
  of the text or no room is left. Longer pieces fill the remaining room, except
  in a 'char' model. The same lines give the same file.

  Args:
    lines: documents; at most 5,000,000 of their lines, drawn evenly, are used.
    size: number of pieces wanted; a small corpus may give fewer, which is
      logged.
    path: the file to write; parent directories are made.
    model_type: 'bpe', 'char' or 'unigram'.

  Returns:
    The vocabulary; its `size` is the number of pieces it really has.

  Raises:
    ValueError: if `size` leaves no room for characters, the model type is
      unknown, there is no text, or the file cannot be written.
  """
  if model_type not in ('bpe', 'char', 'unigram'):
    raise ValueError(
      f"model_type={model_type!r} must be 'bpe', 'char' or 'unigram'."
    )
  if size <= _NUM_FIXED:
    raise ValueError(
      f'A vocabulary must have more than {_NUM_FIXED} pieces (bytes and marks),'
      f' got size={size}: use 512 or more.'
    )
  lines = _sampled(_short_lines(lines))
  counts = collections.Counter()
  for line in lines:
    counts.update(line)
  if not counts:
    raise ValueError(
      'A vocabulary needs text to be trained on, got none: check the task or'
      ' file.'
    )
  covered = _covered(counts, size - _NUM_FIXED)
  # SentencePiece refuses a coverage below 98%. So it gets a coverage of 100%,
  # and we cut the lines at the characters that get no piece.
  cut = {ord(char): '\n' for char in counts if char not in covered}
  parts = (
    part for line in lines for part in line.translate(cut).split('\n') if part
  )
  # The text of one space makes sure that there is a piece for the space. Byte
  # pieces cannot stand for it.
  parts = itertools.chain([' '], parts)
  model = io.BytesIO()
  sentencepiece.set_random_generator_seed(0)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=parts,
    model_writer=model,
    model_type=model_type,
    vocab_size=size,
    hard_vocab_limit=False,
    character_coverage=1.0,
    normalization_rule_name='identity',
    byte_fallback=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
    user_defined_symbols=['\n'],
    pad_id=PAD,
    eos_id=EOS,
    unk_id=UNK,
    bos_id=-1,
    max_sentence_length=4 * _MAX_LINE_CHARS + 1,
    num_threads=8,  # Fixed, since the result depends on the number.
    minloglevel=2,
  )
  _write(model.getvalue(), path)
  vocabulary = Vocabulary(path)
  if vocabulary.size < size:
    logging.getLogger(__name__).warning(
      'The corpus supports %d pieces, not the %d asked for: %s has %d.',
      vocabulary.size,
      size,
      path,
      vocabulary.size,
    )
  return vocabulary


def _short_lines(documents: Iterable[str]) -> Iterator[str]:
  """The lines, with long ones cut: SentencePiece has 16 bits for positions."""
  for document in documents:
    for line in document.split('\n'):
      for start in range(0, len(line), _MAX_LINE_CHARS):
        yield line[start : start + _MAX_LINE_CHARS]


def _sampled(lines: Iterator[str]) -> list[str]:
  """All lines, or an even draw of them (Vitter 1985, algorithm R)."""
  kept, generator = [], random.Random(0)
  for number, line in enumerate(lines):
    if number < _MAX_LINES:
      kept.append(line)
    elif (place := generator.randrange(number + 1)) < _MAX_LINES:
      kept[place] = line
  return kept


def _covered(counts: collections.Counter, room: int) -> set[str]:
  """The characters that get a piece: the space, and at most `room` others.

  The most frequent ones are taken, until all cover `_COVERAGE` of the text.
  """
  total = sum(counts.values())
  covered, seen = {' '}, counts[' ']
  ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  for char, count in ranked:
    if char in _RESERVED or char == ' ' or '\ud800' <= char <= '\udfff':
      continue
    if len(covered) > room or seen >= _COVERAGE * total:
      break
    covered.add(char)
    seen += count
  return covered


def _write(model: bytes, path: str | os.PathLike):
  """Writes a model's file; ValueError if it cannot be written."""
  path = os.path.abspath(path)
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    atomic_files.write_file(path, model)
  except OSError as error:
    raise ValueError(
      f'The vocabulary {path} must be written whole, got {error.strerror}: make'
      ' room, or choose another place.'
    ) from error
