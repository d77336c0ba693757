import itertools
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from moe.data.packing import load_pack_plan
from moe.data.reader import Reader, eval_batches
from moe.data.skips import Skips
from moe.data.store import Store
from moe.modalities.ids import IdSpace
from tests.data import mixed

TEXTS = ['白日', '依山盡黃', '河入', '海流欲窮千里目', '更', '上一層樓']


def assert_same(first, second):
  assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_a_row_is_worked_by_hand(make_store, vocabulary):
  # 白日 and its end mark are three tokens in a row of five places.
  (a, b) = vocabulary.encode('白日')
  reader = Reader([make_store(['白日'])], [1], 5, 1, seed=0)
  batch = reader.batch(0)
  assert batch.tokens.tolist() == [[0, a, b, 0, 0]]
  assert batch.targets.tolist() == [[a, b, 1, 0, 0]]
  assert batch.loss_weights.tolist() == [[1, 1, 1, 0, 0]]
  assert batch.segment_ids.tolist() == [[1, 1, 1, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0, 0]]
  assert not batch.block_ids.any() and not batch.modality.any()
  assert batch.loss_weights.dtype == np.float32
  dtypes = {x.dtype for x in jax.tree.leaves(batch)}
  assert dtypes == {np.dtype('int32'), np.dtype('float32')}


def test_documents_of_a_row_are_segments_of_their_own(make_store, vocabulary):
  a, b, c = vocabulary.encode('白日依')
  reader = Reader([make_store(['白日', '依'])], [1], 6, 1, seed=0)
  batch = reader.batch(0)
  assert batch.tokens.tolist() == [[0, a, b, 0, c, 0]]
  assert batch.targets.tolist() == [[a, b, 1, c, 1, 0]]
  assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]


def test_a_segment_reads_the_token_before_it(make_store, vocabulary):
  # Four characters and the end mark are cut into rows of three and two.
  a, b, c, d = vocabulary.encode('白日依山')
  (batch,) = eval_batches(make_store(['白日依山']), 3, 2)
  assert batch.tokens.tolist() == [[0, a, b], [c, d, 0]]
  assert batch.targets.tolist() == [[a, b, c], [d, 1, 0]]
  assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 0]]
  assert batch.segment_ids.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_prompt_has_no_weight(make_store):
  (batch,) = eval_batches(make_store([('白日', '依')]), 5, 1)
  assert batch.loss_weights.tolist() == [[0, 0, 1, 1, 0]]
  assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 0]]


@pytest.mark.parametrize(
  ('sequence_length', 'batch_size'), [(4, 3), (9, 2), (64, 4)]
)
def test_an_epoch_has_every_token_once(make_store, sequence_length, batch_size):
  directory = make_store(TEXTS)
  num_rows = load_pack_plan(Store(directory), sequence_length).num_rows
  reader = Reader([directory], [1], sequence_length, 1, seed=3)
  for epoch in range(2):
    steps = range(epoch * num_rows, (epoch + 1) * num_rows)
    seen = [tokens_of(reader.batch(step)) for step in steps]
    assert sorted(itertools.chain(*seen)) == sorted(
      itertools.chain(
        *map(tokens_of, eval_batches(directory, sequence_length, batch_size))
      )
    )


def tokens_of(batch):
  return batch.targets[batch.loss_weights > 0].tolist()


def test_evaluation_scores_every_token_once(make_store, vocabulary):
  expected = sorted(
    token for text in TEXTS for token in vocabulary.encode(text) + [1]
  )
  batches = list(eval_batches(make_store(TEXTS), 6, 4))
  assert sorted(itertools.chain(*map(tokens_of, batches))) == expected
  assert {batch.tokens.shape for batch in batches} == {(4, 6)}


def test_batches_depend_on_seed_and_step_alone(make_store):
  directory = make_store(TEXTS)
  first = Reader([directory], [1], 8, 2, seed=5)
  for step in range(7):
    first.batch(step)
  second = Reader([directory], [1], 8, 2, seed=5)
  for step in (6, 0, 3):
    assert_same(first.batch(step), second.batch(step))


def test_skipped_batches_are_left_out_and_no_other_row_changes(make_store):
  store = make_store(TEXTS)
  whole, without = (Reader([store], [1], 4, 2, seed=3) for _ in range(2))
  without.skips = Skips(((1, 3),))
  for step, number in enumerate([0, 3, 4, 5]):
    assert_same(without.batch(step), whole.batch(number))


def test_the_documents_of_a_batch_are_named_by_store(make_store):
  first = make_store(['白', '日', '依'], 'a/train')
  second = make_store(['山', '尽'], 'b/train')
  own = np.array([1, 4, 6])
  make = lambda rows: Reader([first, second], [3, 1], 2, 8, seed=0, rows=rows)
  whole, part = make(None), make(own)
  part.skips = whole.skips = Skips(((0, 5),))
  poems, others = whole.sources(2)
  assert (poems.name, others.name) == ('a', 'b')
  # Six of eight rows come from the first store, two from the second.
  assert sorted([*poems.places, *others.places]) == list(range(8))
  assert poems.places.size == 6
  epoch = Reader([second], [1], 2, 64, seed=0).batch(0)
  read = whole.batch(2).targets[others.places]
  assert set(read.flat) <= set(epoch.targets.flat)
  assert set(others.records) <= {0, 1}
  # On each host, `records` has the documents of the whole batch, but `places`
  # has only rows of the host.
  for of_part, of_whole in zip(part.sources(2), (poems, others), strict=True):
    assert of_part.records.tolist() == of_whole.records.tolist()
    assert own[of_part.places].tolist() == [
      row for row in own if row in of_whole.places
    ]


def test_another_seed_gives_another_order(make_store):
  directory = make_store(['白日依山盡'[: n % 5 + 1] for n in range(40)])
  batches = [
    Reader([directory], [1], 8, 8, seed).batch(0).targets for seed in (0, 1)
  ]
  assert not np.array_equal(*batches)


def test_another_epoch_has_another_order(make_store):
  directory = make_store(['白日依山盡'[: n % 5 + 1] for n in range(40)])
  num_rows = load_pack_plan(Store(directory), 8).num_rows
  reader = Reader([directory], [1], 8, num_rows, seed=0)
  assert not np.array_equal(reader.batch(0).targets, reader.batch(1).targets)


def test_the_batch_size_does_not_change_the_order_of_rows(make_store):
  directory = make_store(TEXTS)
  rows = [
    np.concatenate(
      [
        Reader([directory], [1], 8, size, 0).batch(s).targets
        for s in range(12 // size)
      ]
    )
    for size in (1, 4, 6)
  ]
  assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])


def test_the_rows_of_a_host_are_those_of_the_whole_batch(make_store):
  directory = make_store(TEXTS)
  whole = Reader([directory], [1], 8, 8, seed=0).batch(4)
  for rows in ([2, 3, 4], [0, 3, 6], [7]):
    reader = Reader([directory], [1], 8, 8, seed=0, rows=np.array(rows))
    part = reader.batch(4)
    assert_same(part, jax.tree.map(lambda field, rows=rows: field[rows], whole))


def test_hosts_divide_the_rows_that_they_score(make_store):
  directory = make_store(TEXTS)
  whole = list(eval_batches(directory, 8, 4))
  halves = [
    list(eval_batches(directory, 8, 4, np.array(rows)))
    for rows in ([0, 2], [1, 3])
  ]
  for batch, even, odd in zip(whole, *halves, strict=True):
    assert_same(even, jax.tree.map(lambda field: field[::2], batch))
    assert_same(odd, jax.tree.map(lambda field: field[1::2], batch))


def test_a_host_reads_the_bytes_of_its_own_rows(make_store):
  # Each document fills a row of 8 places, and all records have equal length.
  directory = make_store(['白日依山盡入海'] * 8)
  read = []
  for rows in (None, np.arange(2), np.arange(2, 8)):
    reader = Reader([directory], [1], 8, 8, seed=0, rows=rows)
    reader.batch(0)
    read.append(reader.bytes_read)
  assert read[1] * 4 == read[0]
  assert read[2] * 4 == read[0] * 3


def test_a_mixture_gives_rows_by_rate(make_store, vocabulary):
  first = make_store(['白'] * 7, 'a/train')
  second = make_store(['日'] * 5, 'b/train')
  reader = Reader([first, second], [3, 1], 2, 64, seed=0)
  targets = reader.batch(9).targets[:, 0].tolist()
  assert targets.count(vocabulary.encode('白')[0]) == 48
  assert targets.count(vocabulary.encode('日')[0]) == 16


def test_step_one_million_takes_less_than_a_second(make_store):
  directory = make_store(['白日依山盡'[: n % 5 + 1] for n in range(3000)])
  begin = time.monotonic()
  reader = Reader([directory, directory], [0.7, 0.3], 16, 64, seed=0)
  assert reader.batch(1_000_000).loss_weights.any()
  assert time.monotonic() - begin < 1


def test_a_bad_record_empties_its_row_and_changes_no_other(make_store, damage):
  texts = ['白日依山盡'[: n % 5 + 1] for n in range(40)]
  directory = make_store(texts)
  steps = range(8)
  whole = [Reader([directory], [1], 8, 4, 0).batch(step) for step in steps]
  damage(directory, 11)
  reader = Reader([directory], [1], 8, 4, 0, max_bad_fraction=0.1)
  num_empty = 0
  for step, expected in zip(steps, whole, strict=True):
    batch = reader.batch(step)
    for row in range(4):
      if batch.segment_ids[row].any():
        one = lambda field, row=row: field[row]
        assert_same(jax.tree.map(one, batch), jax.tree.map(one, expected))
      else:
        assert not any(field[row].any() for field in jax.tree.leaves(batch))
        num_empty += 1
  assert num_empty >= 1
  assert [entry['record'] for entry in reader.quarantine] == [11]
  assert reader.quarantine[0]['file'] == str(directory / 'records.array_record')
  assert 'hash mismatch' in reader.quarantine[0]['error']


def shrink_vocabulary(directory):
  """Makes `vocab_size` too small for one record; returns its number."""
  path = directory / 'manifest.json'
  manifest = json.loads(path.read_text())
  tokens = [r['tokens'].max() for r in Store(directory).read(range(3))]
  manifest['vocab_size'] = int(max(tokens))
  path.write_text(json.dumps(manifest))
  return int(np.argmax(tokens))


def test_a_token_beyond_the_vocabulary_empties_its_row(make_store):
  directory = make_store(['白', '日日日', '依依'])
  bad = shrink_vocabulary(directory)
  reader = Reader([directory], [1], 4, 3, 0, max_bad_fraction=0.5)
  reader.batch(0)
  assert [entry['record'] for entry in reader.quarantine] == [bad]
  assert 'its tokens must be below' in reader.quarantine[0]['error']


def test_evaluation_refuses_a_token_beyond_the_vocabulary(make_store):
  directory = make_store(['白', '日日日', '依依'])
  bad = shrink_vocabulary(directory)
  with pytest.raises(ValueError, match=f'Record {bad} of .* must be below'):
    list(eval_batches(directory, 4, 2))


def test_too_many_bad_records_are_an_error(make_store, damage):
  directory = make_store(['白日'] * 10)
  damage(directory, 3)
  # The default limit is a share of 0.0001, which is 0.001 records of 10.
  reader = Reader([directory], [1], 40, 1, 0)
  with pytest.raises(ValueError, match='at most 0.001 of 10 records'):
    reader.batch(0)


def test_evaluation_refuses_a_bad_record(make_store, damage):
  directory = make_store(['白日'] * 3)
  damage(directory, 2)
  with pytest.raises(ValueError, match='Record 2 of'):
    list(eval_batches(directory, 4, 2))


def test_characters_per_token_count_the_end_mark_as_a_token(
  make_store,
):
  # The targets have 2 and 4 characters, and each has an end mark. So there are
  # 6 characters in 8 tokens.
  reader = Reader([make_store([('千里', '白日'), '依山盡黃'])], [1], 64, 1, 0)
  assert reader.chars_per_token == pytest.approx(6 / 8)


def test_characters_per_token_of_a_mixture_are_weighted_by_rows(make_store):
  # A row has 4 places. Store a has 1 row with 3 tokens and 2 characters, store
  # b has 2 rows with 4 tokens and 3 characters each.
  first = make_store(['白日'], 'a/train')
  second = make_store(['依山盡', '黃河入'], 'b/train')
  reader = Reader([first, second], [1, 3], 4, 1, 0)
  # The rates are 1 and 3, so four rows of the mixture have 1 * 2 + 3 * 3 = 11
  # characters and 1 * 3 + 3 * 4 = 15 tokens.
  assert reader.chars_per_token == pytest.approx(11 / 15)
  assert reader.fill == pytest.approx(15 / 16)


def test_the_hash_tells_contents_and_rates_apart(make_store):
  first = make_store(['白日'], 'a/train')
  second = make_store(['依山'], 'b/train')
  copy = make_store(['白日'], 'c/train')

  def hash_of(dirs, rates):
    return Reader(dirs, rates, 4, 1, 0).manifest_hash

  assert hash_of([first], [1]) == hash_of([copy], [2])
  assert hash_of([first], [1]) != hash_of([second], [1])
  assert hash_of([first, second], [1, 1]) != hash_of([first, second], [2, 1])


def test_stores_of_two_vocabularies_are_refused(make_store):
  first = make_store(['白日'], 'a/train')
  second = make_store(['白日'], 'b/train')
  path = second / 'manifest.json'
  text = path.read_text()
  path.write_text(
    text.replace(Store(second).manifest['vocabulary_sha256'], 'f')
  )
  with pytest.raises(ValueError, match='must share one vocabulary'):
    Reader([first, second], [1, 1], 4, 1, 0)


@pytest.mark.parametrize(
  ('rates', 'length', 'size', 'message'),
  [
    ([1, 1], 4, 1, 'needs a rate'),
    ([0], 4, 1, 'Rates must be positive'),
    ([1], 0, 1, 'sequence_length=0'),
    ([1], 4, 0, 'batch_size=0'),
  ],
)
def test_numbers_out_of_range_are_refused(
  make_store, rates, length, size, message
):
  with pytest.raises(ValueError, match=message):
    Reader([make_store(['白日'])], rates, length, size, 0)


def test_reading_needs_neither_tensorflow_nor_seqio(make_store):
  program = f"""
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('tensorflow', 'seqio', 'tensorflow_datasets'):
      raise ImportError(name + ' is blocked')

sys.meta_path.insert(0, Blocked())
from moe.data.reader import Reader, eval_batches
from moe.data.skips import Skips
from moe.data.verify import verify
directory = {str(make_store(TEXTS))!r}
assert Reader([directory], [1], 8, 2, 0).batch(0).targets.any()
assert list(eval_batches(directory, 8, 2))
assert not verify(directory), verify(directory)
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_a_block_that_is_read_comes_before_causal_text(tmp_path):
  # The document has six codes, three letters and the end mark. Place 0 reads
  # the start id and predicts the first code. Place 6 reads the last code and
  # predicts the first letter.
  directory = mixed.write(tmp_path / 'v/described/train', 'described', 1)
  batch = Reader([directory], [1], 10, 1, 0).batch(0)
  assert batch.block_ids.tolist() == [[1] * 7 + [0] * 3]
  assert batch.loss_weights.tolist() == [[0] * 6 + [1] * 4]
  assert batch.modality.tolist() == [[0] + [1] * 6 + [0] * 3]


def test_codes_that_are_predicted_one_by_one_are_in_no_block(tmp_path):
  directory = mixed.write(tmp_path / 'v/drawn/train', 'drawn', 1)
  batch = Reader([directory], [1], 10, 1, 0).batch(0)
  assert not batch.block_ids.any()
  assert batch.loss_weights.tolist() == [[0] * 3 + [1] * 7]
  assert batch.modality.tolist() == [[0] * 4 + [1] * 6]


def test_further_arrays_come_with_the_token_that_is_read(tmp_path):
  def extra(tokens):
    place = np.arange(tokens.size, dtype=np.int16)
    return {'row': place, 'patch': np.stack([place, -place], 1) / 2}

  first = mixed.write(tmp_path / 'v/a/train', 'drawn', 1, extra=extra)
  second = mixed.write(tmp_path / 'v/b/train', 'drawn', 1)
  extras = {
    'row': jax.ShapeDtypeStruct((), 'int32'),
    'patch': jax.ShapeDtypeStruct((2,), 'float32'),
  }
  reader = Reader([first, second], [1, 1], 12, 2, 0, extras=extras)
  rows, patches = (reader.batch(0).extras[name] for name in extras)
  assert sorted(rows.tolist()) == [[0] * 12, [0, *range(9), 0, 0]]
  assert np.array_equal(patches[..., 0] * 2, rows)
  assert (rows.dtype, patches.dtype) == (np.int32, np.float32)


def test_a_further_array_of_another_shape_is_refused(tmp_path):
  extra = lambda tokens: {'row': np.zeros((tokens.size, 3))}
  directory = mixed.write(tmp_path / 'v/a/train', 'drawn', 1, extra=extra)
  extras = {'row': jax.ShapeDtypeStruct((), 'int32')}
  with pytest.raises(ValueError, match=r'row must have shape \(10,\), got'):
    list(eval_batches(directory, 12, 1, extras=extras))


def test_a_store_of_text_fits_into_every_id_space(tmp_path):
  text = mixed.write(tmp_path / 'v/a/train', 'described', 4)
  other = mixed.write(tmp_path / 'v/b/train', 'drawn', 4)
  path = text / 'manifest.json'
  manifest = json.loads(path.read_text())
  del manifest['ids']
  path.write_text(json.dumps(manifest | {'vocab_size': 300}))
  assert Reader([text, other], [1, 1], 10, 1, 0).ids == mixed.SPACE


def test_stores_of_two_spaces_are_refused(tmp_path):
  first = mixed.write(tmp_path / 'v/a/train', 'drawn', 4)
  other = IdSpace(300, image=9)
  second = mixed.write(
    tmp_path / 'v/b/train', 'drawn', 4, **other.in_manifest()
  )
  with pytest.raises(ValueError, match='must share one id space, got text'):
    Reader([first, second], [1, 1], 10, 1, 0)
