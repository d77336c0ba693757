"""Verse forms as templates, and the automaton that keeps samples within them.

In a template a Chinese character (we write 字) stands for any Chinese
character, and every other character for itself. The document ends where the
template ends.
An offset is an index into the template; the last offset is its end. A piece of
the vocabulary fits at an offset if all its characters fit.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Unicode's Chinese characters: 〇, extension A, unified, compatibility, and the
# two planes of extensions.
CHINESE = re.compile(
  '[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]'
)
_VERSES = {'quatrain5': (5, 2), 'quatrain7': (7, 2)}
_VERSES |= {'octave5': (5, 4), 'octave7': (7, 4)}
FORMS = ('couplet', *_VERSES)

# Marks a barred piece in a jump table.
BARRED = -1


class Vocabulary(Protocol):
  """The part of `moe.modalities.text.Vocabulary` that is used here.

  Attributes:
    pad, eos, unk: ids of padding, end mark and unknown pieces.
    size: number of pieces.
  """

  pad: int
  eos: int
  unk: int
  size: int

  def is_byte(self, id: int) -> bool:
    """Whether a piece is one byte of a character."""

  def piece(self, id: int) -> str:
    """How SentencePiece writes a piece."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of token ids."""


def shape(text: str) -> str:
  """The template that `text` fills: its Chinese characters become 字."""
  return CHINESE.sub('字', text)


def template(form: str, prompt: str) -> str:
  """The template of the text after a prompt and a line break.

  Args:
    form: one of `FORMS`.
    prompt: the title of a poem, or the first line of a couplet, whose second
      line has as many characters and the same punctuation.

  Raises:
    ValueError: if the form is unknown or cannot start with the prompt.
  """
  if form not in FORMS:
    raise ValueError(f'form must be one of {", ".join(FORMS)}; got {form!r}.')
  if not prompt.strip() or '\n' in prompt:
    wanted = 'first line of the couplet' if form == 'couplet' else 'title'
    raise ValueError(
      f'form {form} needs the {wanted} as its prompt, one line that is not '
      f'empty; got {prompt!r}.'
    )
  if form != 'couplet':
    line_length, num_pairs = _VERSES[form]
    line = '字' * line_length
    return f'{line}，{line}。' * num_pairs
  mirrored = shape(prompt)
  for character, kept in zip(prompt, mirrored, strict=True):
    if kept != '字' and (kept.isalnum() or kept.isspace()):
      raise ValueError(
        'the first line of a couplet must hold Chinese characters and '
        f'punctuation only, got {character!r} in {prompt!r}: leave it out.'
      )
  if '字' not in mirrored:
    raise ValueError(
      'the first line of a couplet must hold at least one Chinese character, '
      f'got {prompt!r}.'
    )
  return mirrored


def pieces_of(vocabulary: Vocabulary) -> list[str | bytes | None]:
  """What every id of a vocabulary stands for.

  Returns:
    For each id: its text; or its byte, if that byte alone is not a character;
    or None, for padding, end mark, unknown and control pieces.
  """
  special = (vocabulary.pad, vocabulary.eos, vocabulary.unk)
  pieces = []
  for index in range(vocabulary.size):
    if index in special:
      pieces.append(None)
    elif vocabulary.is_byte(index):
      byte = bytes([int(vocabulary.piece(index)[3:5], 16)])
      pieces.append(byte.decode() if byte < b'\x80' else byte)
    else:
      pieces.append(vocabulary.decode([index]) or None)
  return pieces


def form_table(
  pieces: Sequence[str | bytes | None], eos_id: int, filled: str
) -> np.ndarray:
  """Which pieces fit at which offset of a template, and how far each one leads.

  Args:
    pieces: what every id stands for, as `pieces_of` gives it.
    eos_id: the id that ends a document.
    filled: the template.

  Returns:
    int16 [len(filled) + 1, V], a row for each offset: the number of characters
    that a piece fills, `BARRED` if it does not fit, 0 for the end mark at the
    last offset. At every offset at least one piece fits, so there is no dead
    end.

  Raises:
    ValueError: if no piece fits at some offset.
  """
  members = {}
  for index, piece in enumerate(pieces):
    if isinstance(piece, str) and piece and index != eos_id:
      members.setdefault(shape(piece), []).append(index)
  jumps = np.full((len(filled) + 1, len(pieces)), BARRED, np.int16)
  for piece_shape, ids in members.items():
    for offset in range(len(filled)):
      if filled.startswith(piece_shape, offset):
        jumps[offset, ids] = len(piece_shape)
  jumps[len(filled), eos_id] = 0
  closed = np.flatnonzero((jumps == BARRED).all(axis=1))
  if len(closed):
    raise ValueError(
      f'the vocabulary must have a piece for {filled[closed[0]]!r} to write '
      f'{filled!r}, got none: train one whose corpus holds it, or choose '
      'another form or prompt.'
    )
  return jumps


def free_table(pieces: Sequence[str | bytes | None], eos_id: int) -> np.ndarray:
  """The table of free text: one row, which no piece leaves.

  Returns:
    int16 [1, V]: 0 for the end mark and all pieces, `BARRED` for an id whose
    piece is None.
  """
  jumps = np.zeros((1, len(pieces)), np.int16)
  jumps[0, [i for i, piece in enumerate(pieces) if not piece]] = BARRED
  jumps[0, eos_id] = 0
  return jumps
