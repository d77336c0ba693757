"""Texts and records become documents to score."""

import numpy as np
import pytest

from moe.evaluate import documents
from moe.modalities.ids import IdSpace
from moe.types import Extra


class Codebook:
  """A vocabulary of two letters: a is 3, b is 4, all other text is unknown."""

  eos, unk = 1, 2

  def encode(self, text):
    return [{'a': 3, 'b': 4}.get(character, 2) for character in text]

  def decode(self, ids):
    return ''.join({1: '', 3: 'a', 4: 'b'}.get(i, '\ufffd') for i in ids)


def test_unknown_tokens_and_what_they_hide_are_counted():
  (document,) = documents.text_documents(Codebook(), ['a龘b鱻'])
  assert document.tokens.tolist() == [3, 2, 4, 2, 1]
  assert (document.num_unknown, document.hidden_chars) == (2, 2)
  record = {
    'tokens': np.array([2, 2, 3, 2, 1]),
    'loss_weights': np.array([0, 1, 1, 1, 1]),
    # Two unknown tokens, which stand for four characters, and 'a' are scored.
    'num_chars': np.int64(5),
    'num_bytes': np.int64(13),
  }
  document = documents.record_document(Codebook(), IdSpace(5), record)
  assert (document.num_unknown, document.hidden_chars) == (2, 4)


def test_a_vocabulary_that_alters_text_is_refused():
  class Lowercase(Codebook):
    def encode(self, text):
      return super().encode(text.lower())

  with pytest.raises(ValueError, match='got document 2 .* changed: score'):
    documents.text_documents(Lowercase(), ['ab', 'aB'])


def test_codes_are_scored_beside_text_and_are_not_unknown_tokens():
  # Text has the ids 0-4, image codes have 128-131. The picture is a block, and
  # its caption follows.
  space = IdSpace(5, image=4)
  record = {
    'tokens': np.array([128, 131, 3, 2, 1], np.uint16),
    'loss_weights': np.array([0, 0, 1, 1, 1], np.uint8),
    'block_ids': np.array([1, 1, 0, 0, 0], np.uint8),
    'num_chars': np.int64(2),
    'num_bytes': np.int64(4),
  }
  document = documents.record_document(Codebook(), space, record)
  assert (document.num_unknown, document.hidden_chars) == (1, 1)
  assert document.modality.tolist() == [1, 1, 0, 0, 0]
  # The same two codes are now predicted after text.
  record |= {
    'tokens': np.array([3, 128, 131, 1], np.uint16),
    'loss_weights': np.array([0, 1, 1, 1], np.uint8),
    'block_ids': np.zeros(4, np.uint8),
  }
  document = documents.record_document(Codebook(), space, record)
  assert (document.num_unknown, document.hidden_chars) == (0, 0)


def test_a_block_that_is_predicted_has_no_likelihood():
  record = {
    'tokens': np.array([3, 4, 1]),
    'block_ids': np.array([1, 1, 0]),
    'num_chars': np.int64(2),
    'num_bytes': np.int64(2),
  }
  with pytest.raises(ValueError, match='must be scored token by token'):
    documents.record_document(Codebook(), IdSpace(5), record)


def test_extras_are_those_of_the_record_and_0_where_it_has_none():
  extras = Extra('row'), Extra('patch', (2,), 'float32')
  record = {
    'tokens': np.array([3, 4, 1]),
    'row': np.array([1, 2, 0], np.uint8),
    'num_chars': np.int64(2),
    'num_bytes': np.int64(2),
  }
  ids = IdSpace(5)
  found = documents.record_document(Codebook(), ids, record, extras).extras
  assert (found['row'].tolist(), found['row'].dtype) == ([1, 2, 0], np.int32)
  assert not found['patch'].any() and found['patch'].shape == (3, 2)
  (text,) = documents.text_documents(Codebook(), ['ab'], extras)
  assert text.extras['row'].tolist() == [0, 0, 0]
  record['row'] = record['row'][:2]
  with pytest.raises(ValueError, match=r'row of a document must have shape'):
    documents.record_document(Codebook(), ids, record, extras)
