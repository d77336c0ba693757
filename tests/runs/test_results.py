"""A run computes baselines at its end."""

import logging

import numpy as np
import pytest

from moe.data.store import Store, write_store
from moe.modalities.text import train_vocabulary
from moe.runs import results

LINES = ['春眠不覺曉', '處處聞啼鳥', '夜來風雨聲']


@pytest.fixture
def vocabulary(tmp_path):
  return train_vocabulary(LINES, 300, tmp_path / 'vocabulary.model', 'char')


def write(directory, vocabulary, num_given=0):
  """Writes a store of lines; their first `num_given` tokens are not scored."""
  records = []
  for line in LINES:
    ids = [*vocabulary.encode(line), vocabulary.eos]
    records.append({'tokens': np.array(ids, np.uint16)})
  tokens = sum(record['tokens'].size for record in records)
  counts = {
    'chars': sum(map(len, LINES)) - num_given * len(LINES),
    'scored_tokens': tokens - num_given * len(LINES),
  }
  facts = {'task': 't', 'counts': counts, 'vocab_size': vocabulary.size}
  write_store(directory, records, lambda: facts)
  return [Store(directory)]


def test_longer_n_grams_predict_the_training_texts_better(tmp_path, vocabulary):
  dirs = write(tmp_path / 'train', vocabulary)
  scores = results.baselines(dirs, dirs, vocabulary, tmp_path, 'train')
  assert {(score.n, score.command) for score in scores} == {(3, 'train')}
  bits = {score.name: score.value for score in scores}
  assert bits.keys() == set(results.BASELINES)
  assert bits['trigram'] < bits['bigram'] < bits['unigram']


def test_n_grams_of_the_same_texts_are_counted_once(
  tmp_path, vocabulary, monkeypatch
):
  dirs = write(tmp_path / 'train', vocabulary)
  first = results.baselines(dirs, dirs, vocabulary, tmp_path)
  monkeypatch.setattr(results, 'ngram_bits', None)  # A call would fail.
  assert results.baselines(dirs, dirs, vocabulary, tmp_path) == first


def test_documents_with_a_given_part_have_no_n_gram_baseline(
  tmp_path, vocabulary, caplog
):
  caplog.set_level(logging.INFO, 'moe')
  train = write(tmp_path / 'train', vocabulary)
  held_out = write(tmp_path / 'held_out', vocabulary, num_given=2)
  assert results.baselines(train, held_out, vocabulary, tmp_path) == []
  assert 'a part of the documents of t is given' in caplog.text
