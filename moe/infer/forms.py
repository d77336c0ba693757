"""Verse forms as templates, and tables of the tokens that a template allows.

A template is a text. In a template, 字 stands for any Chinese character, and
every other character stands for itself. The document ends where the template
ends. An offset is an index into the template; the last offset is its end. A
piece of the vocabulary fits at an offset if all its characters fit. In a jump
table, each offset has a row that says which pieces fit and how many characters
they fill.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Unicode's Chinese characters: 〇, extension A, the unified ideographs, the
# compatibility ideographs, and planes 2 and 3 with the other extensions.
CHINESE = re.compile(
  '[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]'
)
_VERSES = {'quatrain5': (5, 2), 'quatrain7': (7, 2)}
_VERSES |= {'octave5': (5, 4), 'octave7': (7, 4)}
FORMS = ('couplet', *_VERSES)

# The entry of a piece that does not fit, in a jump table.
BARRED = -1


class Vocabulary(Protocol):
  """The methods of `moe.modalities.text.Vocabulary` that this file needs.

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
    """The text of a piece as SentencePiece writes it."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids."""


def shape(text: str) -> str:
  """The template of a text: each Chinese character becomes 字."""
  return CHINESE.sub('字', text)


def template(form: str, prompt: str) -> str:
  """The template of the text that follows a prompt and a line break.

  Args:
    form: one of `FORMS`.
    prompt: the title of a poem, or the first line of a couplet. The second line
      of a couplet has as many characters and the same punctuation.

  Raises:
    ValueError: if the form is unknown or the prompt does not suit it.
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
  """The text that each id of a vocabulary stands for.

  Returns:
    For each id its text. A piece of one byte that is no character by itself has
    this byte instead. Padding, end mark, unknown and control pieces have None.
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
  """Makes the jump table of a template.

  Args:
    pieces: the text of each id, from `pieces_of`.
    eos_id: the id that ends a document.
    filled: the template.

  Returns:
    int16 [len(filled) + 1, V], a row for each offset. An entry is the number of
    characters that a piece fills, or `BARRED` if the piece does not fit. The
    end mark fits only at the last offset; its entry is 0. At every offset at
    least one piece fits, so a sample can always go on.

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
  """Makes the jump table of free text, which has only one row.

  Returns:
    int16 [1, V]: 0 for the end mark and for ids with a text or a byte, else
    `BARRED`.
  """
  jumps = np.zeros((1, len(pieces)), np.int16)
  jumps[0, [i for i, piece in enumerate(pieces) if not piece]] = BARRED
  jumps[0, eos_id] = 0
  return jumps
