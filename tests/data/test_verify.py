import json

import numpy as np
import pytest

from moe.data import store, verify
from moe.modalities.text import train_vocabulary

TEXTS = ['白日依山盡', ('黃河\n', '入海流'), 'a𠮷\u2581 ']


def test_a_sound_store_has_no_problems(make_store):
  assert verify.verify(make_store(TEXTS)) == []


def test_no_store_is_a_problem(tmp_path):
  (problem,) = verify.verify(tmp_path / 'task' / 'train')
  assert 'A token store must be at' in problem


def test_a_damaged_file_is_a_problem(make_store, damage):
  directory = make_store(TEXTS)
  damage(directory, 1)
  (problem,) = verify.verify(directory)
  assert 'records.array_record must have SHA-256' in problem


def test_another_vocabulary_is_a_problem(make_store, tmp_path):
  directory = make_store(TEXTS)
  train_vocabulary(['完全不同'], 300, tmp_path / store.VOCABULARY)
  problems = verify.verify(directory)
  assert 'vocabulary_sha256' in problems[0] and 'vocab_size' in problems[1]


def test_a_missing_vocabulary_is_a_problem(make_store, tmp_path):
  directory = make_store(TEXTS)
  (tmp_path / store.VOCABULARY).unlink()
  (problem,) = verify.verify(directory)
  assert 'got nothing there' in problem


def test_a_wrong_count_is_a_problem(make_store):
  directory = make_store(TEXTS)
  path = directory / store.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['counts']['chars'] += 1
  path.write_text(json.dumps(manifest))
  # The documents have 5 + 3 + 4 scored characters.
  assert verify.verify(directory) == ['The manifest says 13 chars, got 12.']


@pytest.mark.parametrize(
  ('tokens', 'num_chars', 'problem'),
  [
    ([5], 1, 'not the end mark'),
    ([400, 1], 1, 'ids from 1 to 400'),
    ([0xE7 + 4, 1], 1, 'do not survive'),
    ([0x41 + 4, 1], 7, 'num_chars is 7, the text has 1'),
  ],
)
def test_a_record_that_is_not_a_document_is_a_problem(
  tmp_path, vocabulary, tokens, num_chars, problem
):
  # The ids of bytes begin at 4. The byte 0xE7 alone is an incomplete character.
  directory = tmp_path / 'task' / 'train'
  store.write_store(
    directory,
    [
      {
        'tokens': np.array(tokens, np.uint16),
        'num_chars': np.int64(num_chars),
      }
    ],
    lambda: {
      'counts': dict.fromkeys(
        ('scored_tokens', 'chars', 'bytes', 'unknown_tokens'), 0
      ),
      'vocab_size': vocabulary.size,
      'vocabulary_sha256': vocabulary.sha256,
    },
  )
  assert any(problem in found for found in verify.verify(directory))
