import gzip
import json
import os
import pathlib
import shutil
import time

import numpy as np
import pytest

from moe.data import packing
from moe.data.store import Store

PROJECT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(
  os.environ.get('WUDAO_DATA', PROJECT.parent / 'shared' / 'data')
)


def rows_of(plan):
  """[(record, start, length), ...] of every row."""
  segments = list(zip(plan.record, plan.start, plan.length, strict=True))
  segments = [tuple(map(int, segment)) for segment in segments]
  bounds = zip(plan.row_start[:-1], plan.row_start[1:], strict=True)
  return [segments[first:last] for first, last in bounds]


def test_a_plan_is_worked_by_hand():
  # A row has 8 places. Document 5 fills two rows, and its last 4 tokens remain.
  # Then the longest segments are placed first. Document 3 (8 tokens) fills a
  # row, document 1 (5) begins a row, and the 4 tokens of document 5 share a row
  # with the 4 of document 7. Document 0 (3) is put beside document 1, document
  # 2 (2) into a new row, and document 4 (1) beside document 2.
  plan = packing.pack(np.array([3, 5, 2, 8, 1, 20, 0, 4]), 8)
  rows = rows_of(plan)
  assert [(1, 0, 5), (0, 0, 3)] in rows
  assert [(2, 0, 2), (4, 0, 1)] in rows
  assert [(3, 0, 8)] in rows
  assert [(5, 0, 8)] in rows and [(5, 8, 8)] in rows
  last = [row for row in rows if len(row) == 2 and (5, 16, 4) in row]
  assert len(last) == 1 and (7, 0, 4) in last[0]
  assert plan.num_rows == 6
  # There are 43 tokens in 6 rows of 8 places.
  assert plan.fill == pytest.approx(43 / 48)


@pytest.mark.parametrize('sequence_length', [1, 7, 64, 300])
def test_every_token_is_in_one_segment_and_no_row_is_too_long(sequence_length):
  lengths = np.random.default_rng(0).integers(0, 200, 500)
  plan = packing.pack(lengths, sequence_length)
  seen = [np.zeros(length, int) for length in lengths]
  for row in rows_of(plan):
    assert 0 < sum(length for _, _, length in row) <= sequence_length
    for record, start, length in row:
      seen[record][start : start + length] += 1
  assert all((places == 1).all() for places in seen)


def test_only_the_last_segment_of_a_long_document_is_short():
  plan = packing.pack(np.array([25]), 10)
  assert sorted(
    zip(plan.start.tolist(), plan.length.tolist(), strict=True)
  ) == [
    (0, 10),
    (10, 10),
    (20, 5),
  ]


def test_the_same_lengths_give_the_same_plan():
  lengths = np.random.default_rng(1).integers(1, 90, 1000)
  assert rows_of(packing.pack(lengths, 128)) == rows_of(
    packing.pack(lengths, 128)
  )


def test_rows_follow_the_order_of_the_corpus():
  lengths = np.random.default_rng(2).integers(60, 70, 1000)
  openers = [row[0][0] for row in rows_of(packing.pack(lengths, 80))]
  assert openers == sorted(openers)


def test_neighbours_in_the_corpus_are_not_neighbours_in_a_row():
  rows = rows_of(packing.pack(np.full(1000, 32), 64))
  together = sum(abs(row[0][0] - row[1][0]) == 1 for row in rows)
  # The 1000 documents are in 500 rows of two. By chance, about one row holds
  # two documents that are neighbours in the corpus.
  assert together < 10


def test_rows_of_poems_are_97_percent_full():
  path = DATA / 'text' / 'poems_shi_valid.jsonl.gz'
  if not path.exists():
    pytest.skip(f'no poems at {path}')
  with gzip.open(path, 'rt', encoding='utf-8') as f:
    poems = [json.loads(line) for line in f]
  # A document has one token per character, one for the line break, and the end
  # mark.
  lengths = [
    len(poem['title']) + 1 + len(''.join(poem['paragraphs'])) + 1
    for poem in poems
  ]
  assert packing.pack(np.array(lengths), 128).fill > 0.97


def test_a_million_documents_take_seconds():
  lengths = np.random.default_rng(4).lognormal(4.5, 1.0, 1_000_000)
  begin = time.process_time()
  plan = packing.pack(lengths.astype(np.int64) + 1, 1024)
  assert time.process_time() - begin < 10
  assert plan.fill > 0.99


def test_a_plan_is_kept_beside_the_store_and_used_again(
  make_store, monkeypatch
):
  opened = Store(make_store(['白日', '依山盡', '黃河']))
  plan = packing.load_pack_plan(opened, 4)

  def pack_again(*args):
    raise AssertionError('the plan was there')

  monkeypatch.setattr(packing, 'pack', pack_again)
  assert rows_of(packing.load_pack_plan(opened, 4)) == rows_of(plan)
  with pytest.raises(AssertionError, match='was there'):
    packing.load_pack_plan(opened, 5)


def test_a_plan_that_was_made_for_other_documents_is_not_used(make_store):
  packing.load_pack_plan(Store(make_store(['白日'])), 4)
  kept = Store(make_store(['白'])).directory
  # A user may copy the plan of another store into the store `kept`.
  other = Store(make_store(['白日依山', '黃河'], 'other/train'))
  packing.load_pack_plan(other, 4)
  shutil.copy(f'{other.directory}/plan-4-v1.npz', kept)
  assert rows_of(packing.load_pack_plan(Store(kept), 4)) == [[(0, 0, 2)]]


def test_a_damaged_plan_is_made_again(make_store):
  directory = make_store(['白日', '黃河入海'])
  plan = packing.load_pack_plan(Store(directory), 8)
  (directory / 'plan-8-v1.npz').write_bytes(b'PK damaged')
  assert rows_of(packing.load_pack_plan(Store(directory), 8)) == rows_of(plan)


def test_a_plan_that_cannot_be_kept_is_still_used(make_store, monkeypatch):
  directory = make_store(['白日'])

  def full(*args, **kwargs):
    raise OSError('No space left on device')

  monkeypatch.setattr(packing.np, 'savez', full)
  assert packing.load_pack_plan(Store(directory), 8).num_rows == 1
  assert not [path for path in directory.iterdir() if 'tmp' in path.name]


def test_a_row_without_places_is_refused():
  with pytest.raises(ValueError, match='at least 1'):
    packing.pack(np.array([1]), 0)


def cuts_of(lengths, sequence_length, blocks):
  plan = packing.pack(np.array(lengths), sequence_length, np.array(blocks))
  segments = [segment for row in rows_of(plan) for segment in row]
  return [(start, length) for _, start, length in sorted(segments)]


def test_a_row_ends_before_a_block_that_it_cannot_hold():
  # Tokens 6 to 8 are a block. Rows of 8 tokens would cut it, so it moves as a
  # whole.
  assert cuts_of([20], 8, [[0, 6, 9, 0]]) == [(0, 6), (6, 8), (14, 6)]


def test_the_token_after_a_block_is_read_with_it():
  # Tokens 5 to 7 are a block. Place 8 reads token 7, so place 8 belongs to the
  # block, too.
  assert cuts_of([20], 8, [[0, 5, 8, 0]]) == [(0, 5), (5, 8), (13, 7)]
  assert cuts_of([20], 8, [[0, 4, 7, 0]]) == [(0, 8), (8, 8), (16, 4)]


def test_blocks_of_short_documents_change_no_plan():
  lengths = np.random.default_rng(0).integers(1, 30, 200)
  blocks = np.array([[n, 0, lengths[n], 0] for n in range(0, 200, 3)])
  plans = [packing.pack(lengths, 30, b) for b in (None, blocks)]
  assert rows_of(plans[0]) == rows_of(plans[1])


def test_no_block_is_cut_and_every_token_is_in_one_segment():
  rng = np.random.default_rng(1)
  lengths, blocks = rng.integers(60, 200, 50), []
  for number, length in enumerate(lengths):
    for begin in range(int(rng.integers(0, 20)), length - 12, 25):
      blocks.append([number, begin, begin + int(rng.integers(1, 12)), 0])
  plan = packing.pack(lengths, 20, np.array(blocks))
  seen = [np.zeros(length, int) for length in lengths]
  cuts = set()
  for number, start, length in (
    segment for row in rows_of(plan) for segment in row
  ):
    seen[number][start : start + length] += 1
    cuts.add((number, start))
  assert all((places == 1).all() for places in seen)
  for number, begin, end, _ in blocks:
    assert not any((number, cut) in cuts for cut in range(begin + 1, end + 1))


@pytest.mark.parametrize(
  'blocks', [[[0, 2, 10, 0]], [[0, 2, 6, 0], [0, 6, 11, 0]]]
)
def test_a_block_that_no_row_holds_is_refused(blocks):
  with pytest.raises(ValueError, match='sequence_length=8 must hold the block'):
    packing.pack(np.array([20]), 8, np.array(blocks))
