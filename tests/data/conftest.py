"""Makes token stores without seqio."""

import numpy as np
import pytest

from moe.data import store
from moe.modalities.text import train_vocabulary

LINES = ['白日依山盡，黃河入海流。', '欲窮千里目，更上一層樓。', '床前明月光']


def write_texts(directory, vocabulary, texts):
  """Writes (prompt, target) pairs or targets to a store; returns its path."""
  counts = dict.fromkeys(
    ('scored_tokens', 'chars', 'bytes', 'unknown_tokens'), 0
  )

  def records():
    for text in texts:
      prompt, target = text if isinstance(text, tuple) else ('', text)
      given, ids = vocabulary.encode(prompt), vocabulary.encode(target) + [1]
      counts['scored_tokens'] += len(ids)
      counts['chars'] += len(target)
      counts['bytes'] += len(target.encode())
      record = {
        'tokens': np.array(given + ids, np.uint16),
        'num_chars': np.int64(len(target)),
        'num_bytes': np.int64(len(target.encode())),
      }
      if given:
        weights = [0] * len(given) + [1] * len(ids)
        record['loss_weights'] = np.array(weights, np.uint8)
      yield record

  store.write_store(
    directory,
    records(),
    lambda: {
      'counts': counts,
      'vocab_size': vocabulary.size,
      'vocabulary_sha256': vocabulary.sha256,
    },
  )
  return directory


@pytest.fixture
def damage():
  """Returns a function that flips a byte of one record of a store."""

  def damage_record(directory, record):
    records = store.Store(directory).read(range(record + 1))
    path = directory / store.RECORDS
    content, end = bytearray(path.read_bytes()), 0
    for data in map(store.encode_record, records):
      start = content.index(data, end)
      end = start + len(data)
    content[end - 1] ^= 0xFF
    path.write_bytes(content)

  return damage_record


@pytest.fixture
def vocabulary(tmp_path):
  return train_vocabulary(LINES, 320, tmp_path / 'vocabulary.model', 'char')


@pytest.fixture
def make_store(tmp_path, vocabulary):
  def make(texts, name='task/train'):
    return write_texts(tmp_path / name, vocabulary, texts)

  return make
