import gzip
import json
import lzma
import math
import os
import pathlib
import time

import numpy as np
import pytest

from moe.evaluate.ngram import (
  NUM_SYMBOLS,
  TrigramWriter,
  document_bits,
  ngram_bits,
)
from tests import protein_data

DATA = pathlib.Path(
  os.environ.get(
    'WUDAO_DATA',
    pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data',
  )
)


def test_unigram_is_worked_by_hand():
  # Training has a, b and the end mark once each: N = 3 tokens of 3 kinds. Each
  # has P = (1 + 3 / NUM_SYMBOLS) / (3 + 3). The text has two characters.
  prob = (1 + 3 / NUM_SYMBOLS) / 6
  expected = 3 * -math.log2(prob) / 2
  assert ngram_bits(['ab'], ['ab'], 1) == pytest.approx(expected, rel=1e-12)


def test_bits_of_each_text_include_its_end_mark():
  bit = -math.log2((1 + 3 / NUM_SYMBOLS) / 6)
  found = document_bits(['ab'], ['ab', 'a'], 1)
  assert found.tolist() == pytest.approx([3 * bit, 2 * bit], rel=1e-12)


def test_an_end_mark_that_is_not_predicted_has_no_probability():
  # Training has a and b once each: P = (1 + 2 / NUM_SYMBOLS) / (2 + 2).
  bit = -math.log2((1 + 2 / NUM_SYMBOLS) / 4)
  found = document_bits(['ab'], ['ab', 'a', ''], 1, with_end=False)
  assert found.tolist() == pytest.approx([2 * bit, bit, 0], rel=1e-12)
  # In training, b alone follows a, and nothing else ever follows b.
  found = document_bits(['ab'], ['ab'], 2, with_end=False)
  begin = (1 + 2**-bit) / 2  # P(a | begin mark) and P(b | a).
  assert found.tolist() == pytest.approx([-2 * math.log2(begin)], rel=1e-12)


def test_bigram_is_worked_by_hand():
  # Each context h (begin mark, a, b) is seen once, before one kind of token. So
  # P(w | h) = (1 + 1 * P(w)) / (1 + 1), with the unigram P(w) = (1 + 3 /
  # NUM_SYMBOLS) / 6.
  prob = (1 + (1 + 3 / NUM_SYMBOLS) / 6) / 2
  expected = 3 * -math.log2(prob) / 2
  assert ngram_bits(['ab'], ['ab'], 2) == pytest.approx(expected, rel=1e-12)


def test_an_unseen_character_costs_its_share_of_the_uniform_distribution():
  # Training has 2 tokens of 2 kinds, a and the end mark. So 'c', which is
  # unseen, has probability 2 / (2 + 2) / NUM_SYMBOLS.
  unseen = 2 / 4 / NUM_SYMBOLS
  end = (1 + 2 / NUM_SYMBOLS) / 4
  expected = -math.log2(unseen) - math.log2(end)
  assert ngram_bits(['a'], ['c'], 1) == pytest.approx(expected, rel=1e-12)


def test_an_unseen_context_falls_back_to_the_lower_order():
  # No token was seen after 'c', so the end mark costs as much as in a unigram.
  begin_c = ngram_bits(['a'], ['c'], 2)
  unigram = ngram_bits(['a'], ['c'], 1)
  # 'c' follows the begin mark, which was seen once, before one kind of token.
  # So P = (0 + 1 * P1) / (1 + 1), with the unigram's P1. This costs 1 bit more
  # than P1.
  assert begin_c == pytest.approx(unigram + 1, rel=1e-12)


def test_probabilities_of_all_symbols_sum_to_one():
  # A held-out text of one character x has probability P(x) P(end), and its bits
  # per character are the bits of the whole text. P(x) must sum to 1 over all
  # symbols x, seen and unseen.
  train = ['abac', 'ba']
  end = 2 ** -ngram_bits(train, ['a'], 1)
  p_a = end  # This is P(a) P(end). `others` has P(x) P(end) for b, c and d.
  others = [2 ** -ngram_bits(train, [x], 1) for x in 'bcd']
  # The counts are a 3, b 2, c 1 and end 2, so there are 8 tokens of 4 kinds.
  p_end = (2 + 4 / NUM_SYMBOLS) / 12
  seen = (p_a + others[0] + others[1]) / p_end + p_end
  unseen = others[2] / p_end * (NUM_SYMBOLS - 4)
  assert seen + unseen == pytest.approx(1, rel=1e-9)


def test_an_empty_text_costs_only_its_end_mark():
  with_empty = ngram_bits(['ab', ''], ['ab', ''], 1)
  # The counts are a 1, b 1 and end 2, so there are 4 tokens of 3 kinds. P(end)
  # is (2 + 3u) / (4 + 3).
  u = 1 / NUM_SYMBOLS
  bits = 2 * -math.log2((1 + 3 * u) / 7) + 2 * -math.log2((2 + 3 * u) / 7)
  assert with_empty == pytest.approx(bits / 2, rel=1e-12)


@pytest.mark.parametrize(
  ('train', 'held_out', 'order'),
  [(['a'], ['a'], 0), ([], ['a'], 1), (['a'], [''], 1)],
)
def test_nothing_to_count_or_score_is_refused(train, held_out, order):
  with pytest.raises(ValueError, match='must be at least 1|need a character'):
    ngram_bits(train, held_out, order)


@pytest.fixture(scope='module')
def poems():
  """(training texts, validation texts)."""
  folder = DATA / 'text'
  if not (folder / 'poems_shi_train.jsonl.xz').exists():
    pytest.skip(f'no poems in {folder}')

  def texts(opener, name):
    with opener(folder / name, 'rt', encoding='utf-8') as f:
      for poem in map(json.loads, f):
        yield poem['title'] + '\n' + ''.join(poem['paragraphs'])

  train = list(texts(lzma.open, 'poems_shi_train.jsonl.xz'))
  return train, list(texts(gzip.open, 'poems_shi_valid.jsonl.gz'))


@pytest.mark.slow
@pytest.mark.parametrize(('order', 'bits'), [(1, 9.90), (2, 8.29), (3, 8.13)])
def test_poems_give_the_published_baselines_in_half_a_minute(
  poems, order, bits
):
  begin = time.process_time()
  assert round(ngram_bits(*poems, order), 2) == bits
  assert time.process_time() - begin < 30


@protein_data.has_data
@pytest.mark.parametrize(('order', 'bits'), [(1, 4.234), (3, 4.249)])
def test_residues_have_the_bits_of_their_letters_alone(order, bits):
  train, held_out = (
    np.load(protein_data.FOLDER / f'chains_{split}.npz')['seq'].tolist()
    for split in ('train', 'valid')
  )
  found = document_bits(train, held_out, order, with_end=False)
  assert round(found.sum() / sum(map(len, held_out)), 3) == bits


def test_a_trigram_writes_what_can_follow():
  writer = TrigramWriter(['abc', 'abc'])
  assert writer.write('a', 10, 'seed') == 'bc'
  assert writer.write('a', 1, 'seed') == 'b'
  assert writer.write('x', 10, 'seed') == ''
