"""Makes stores of three synthetic tasks.

The tasks are to describe a picture, to draw a picture, and to predict hidden
residues.
"""

import numpy as np

from moe.data import store
from moe.modalities.ids import IdSpace

SPACE = IdSpace(300, command=1, image=8, residue=5)
CODES = 6  # Codes of a picture.
LETTERS = 3  # Caption letters; codes 2i and 2i + 1 determine letter i.


def letters_of(codes):
  """The caption of a picture, as text ids from 10 on."""
  return 10 + codes[::2] * 8 + codes[1::2]


def described(rng):
  """A document: a picture as a block, then its caption."""
  codes = rng.integers(0, 8, CODES)
  tokens = [*SPACE.ids('image', codes), *letters_of(codes), 1]
  weights = [0] * CODES + [1] * (LETTERS + 1)
  return tokens, weights, [1] * CODES + [0] * (LETTERS + 1)


def drawn(rng):
  """A document: a caption, then the codes of the picture without a block."""
  codes = rng.integers(0, 8, CODES)
  tokens = [*letters_of(codes), *SPACE.ids('image', codes), 1]
  return tokens, [0] * LETTERS + [1] * (CODES + 1), None


def folded(rng):
  """A document of eight residues in one block; a transform must hide some."""
  start = rng.integers(0, 5)
  residues = (start + np.arange(8)) % 5
  tokens = [*SPACE.ids('residue', residues), 1]
  return tokens, None, [1] * 8 + [0]


KINDS = {'described': described, 'drawn': drawn, 'folded': folded}


def places(tokens):
  """Extras: row and column of each code in a 2 x 3 picture, counted from 1."""
  is_code, found = SPACE.modality(tokens.astype(np.int32)) == 1, {}
  place = np.cumsum(is_code) - 1
  for name, values in (('row', place // 3), ('column', place % 3)):
    found[name] = np.where(is_code, values + 1, 0).astype(np.uint8)
  return found


def write(directory, kind, num_records, seed=0, extra=None, **facts):
  """Writes a store of one kind; `extra` makes further arrays from tokens."""
  rng, counts = np.random.default_rng(seed), {}

  def records():
    total = 0
    for _ in range(num_records):
      tokens, weights, blocks = KINDS[kind](rng)
      record = {'tokens': np.array(tokens, np.uint16)}
      if weights is not None:
        record['loss_weights'] = np.array(weights, np.uint8)
      if blocks is not None:
        record['block_ids'] = np.array(blocks, np.uint8)
      if extra is not None:
        record |= extra(record['tokens'])
      total += sum(weights or [1] * len(tokens))
      yield record
    num_chars = total - num_records  # An end mark is not a character.
    counts.update(scored_tokens=total, chars=num_chars, bytes=num_chars)

  store.write_store(
    directory,
    records(),
    lambda: {
      'task': kind,
      'counts': counts,
      'vocab_size': SPACE.text,
      'vocabulary_sha256': 'v',
      **SPACE.in_manifest(),
      **facts,
    },
  )
  return directory
