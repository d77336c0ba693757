import json

import numpy as np
import pytest

from moe.data import store


def test_a_record_comes_back_with_names_types_and_shapes():
  arrays = {
    'tokens': np.array([1, 2, 65535], np.uint16),
    'num_chars': np.int64(3),
    'coords': np.arange(6, dtype='>f4').reshape(2, 3),
    'empty': np.zeros((0, 4), np.int32),
  }
  record = store.decode_record(store.encode_record(arrays))
  assert list(record) == list(arrays)
  for name, array in arrays.items():
    assert record[name].shape == np.shape(array)
    assert np.array_equal(record[name], array)
  assert record['tokens'].dtype == np.uint16


def test_the_bytes_of_a_record_are_those_documented():
  # A record is its CRC-32, the length of the header (22), the header, and then
  # the numbers 5 and 6 with two bytes each.
  data = store.encode_record({'tokens': np.array([5, 6], np.uint16)})
  header = b'[["tokens","<u2",[2]]]'
  assert data[4:] == b'\x16\0\0\0' + header + b'\x05\0\x06\0'


def test_a_damaged_record_is_refused():
  data = bytearray(store.encode_record({'tokens': np.arange(4)}))
  data[-1] ^= 1
  with pytest.raises(ValueError, match='checksum'):
    store.decode_record(bytes(data))


def test_records_are_read_by_number(make_store):
  opened = store.Store(make_store(['白', '日日', '山']))
  assert opened.lengths.tolist() == [2, 3, 2]
  sizes = [record['tokens'].size for record in opened.read([1, 0, 1])]
  assert sizes == [3, 2, 3]


def test_two_writes_give_the_same_files(make_store):
  manifests = [
    store.Store(make_store(['白', '日日'], f'task/{name}')).manifest
    for name in 'ab'
  ]
  assert manifests[0] == manifests[1]


def test_a_failed_write_leaves_nothing(tmp_path):
  def records():
    yield {'tokens': np.array([1])}
    raise KeyError('out of paper')

  with pytest.raises(KeyError):
    store.write_store(tmp_path / 'task' / 'train', records(), dict)
  assert not list((tmp_path / 'task').iterdir())


def test_a_failed_write_leaves_the_old_store(make_store):
  directory = make_store(['白'])
  with pytest.raises(ValueError, match='at least one document'):
    make_store([])
  assert store.Store(directory).lengths.tolist() == [2]


def test_what_a_killed_write_leaves_is_no_store_and_is_replaced(
  tmp_path, make_store
):
  left = tmp_path / 'task' / 'train.tmp'
  left.mkdir(parents=True)
  (left / store.RECORDS).write_bytes(b'half')
  with pytest.raises(ValueError, match='must be at'):
    store.Store(tmp_path / 'task' / 'train')
  make_store(['白'])
  assert not left.exists()


def test_a_damaged_record_is_named(make_store, damage):
  directory = make_store(['白日', '依山', '盡黃'])
  damage(directory, 1)
  with pytest.raises(ValueError, match='Record 1 of .* must be readable'):
    store.Store(directory).read([0, 1, 2])


def test_a_damaged_record_takes_no_neighbour_with_it(make_store, damage):
  directory = make_store(['白日', '依山', '盡黃'])
  expected = [
    record['tokens'] for record in store.Store(directory).read(range(3))
  ]
  damage(directory, 1)
  errors = []
  records = store.Store(directory).read(
    range(3), lambda index, error: errors.append(index)
  )
  assert errors == [1] and records[1] is None
  assert np.array_equal(records[0]['tokens'], expected[0])
  assert np.array_equal(records[2]['tokens'], expected[2])


def test_a_file_cut_short_is_refused(make_store):
  directory = make_store(['白日', '依山'])
  path = directory / store.RECORDS
  path.write_bytes(path.read_bytes()[:70_000])
  with pytest.raises(ValueError, match='must have 2 records, got'):
    store.Store(directory).read([0])


@pytest.mark.parametrize(
  'change',
  [{'format': 0}, {'records': 7}],
)
def test_a_manifest_that_does_not_fit_is_refused(make_store, change):
  directory = make_store(['白日'])
  path = directory / store.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match='complete and of this version'):
    store.Store(directory)


def test_a_task_is_found_as_one_store(make_store, tmp_path):
  directory = make_store(['白日'])
  assert store.find_stores(tmp_path, 'task', 'train') == (
    [str(directory)],
    [1.0],
  )


def test_a_mixture_is_found_as_the_stores_of_its_tasks(make_store, tmp_path):
  make_store(['白'], 'a/train')
  make_store(['日'], 'b/train')
  make_store(['日'], 'b/validation')
  (tmp_path / 'mix').mkdir()
  (tmp_path / 'mix' / store.MIXTURE).write_text(
    json.dumps(
      {
        'rates': {'a': 3, 'b': 1},
        'splits': {'train': ['a', 'b'], 'validation': ['b']},
      }
    )
  )
  dirs, rates = store.find_stores(tmp_path, 'mix', 'train')
  assert dirs == [str(tmp_path / 'a/train'), str(tmp_path / 'b/train')]
  assert rates == [3, 1]
  dirs, rates = store.find_stores(tmp_path, 'mix', 'validation')
  assert dirs == [str(tmp_path / 'b/validation')]
  with pytest.raises(ValueError, match='must be one of train, validation'):
    store.find_stores(tmp_path, 'mix', 'test')


def test_a_missing_store_is_refused(tmp_path):
  with pytest.raises(ValueError, match='launch.data cache task'):
    store.find_stores(tmp_path, 'task', 'train')


def test_a_store_that_is_held_does_not_change_when_it_is_made_again(
  make_store,
):
  directory = make_store(['白日', '依'])
  held = store.Store(directory).hold()
  make_store(['山', '盡', '黃河', '入海流'])
  assert held.lengths.tolist() == [3, 2]
  assert [record['tokens'].size for record in held.read([1, 0])] == [2, 3]
  assert store.Store(directory).lengths.tolist() == [2, 2, 3, 4]


def test_a_store_that_is_made_again_while_it_is_opened_is_refused(make_store):
  opened = store.Store(make_store(['白', '日']))
  make_store(['日', '白'])
  with pytest.raises(ValueError, match='must stay as it is while it is opened'):
    opened.hold()


def test_a_block_is_one_run_of_neighbours(tmp_path):
  record = {
    'tokens': np.arange(4),
    'block_ids': np.array([1, 0, 1, 0], np.uint8),
  }
  with pytest.raises(ValueError, match='block 1 at .0, 2.: give each part'):
    store.write_store(tmp_path / 'task/train', [record], dict)


def test_a_store_knows_its_blocks(tmp_path):
  record = {
    'tokens': np.arange(6),
    'block_ids': np.array([0, 1, 1, 2, 2, 0], np.uint8),
    'loss_weights': np.array([0, 0, 0, 1, 1, 1], np.uint8),
  }
  plain = {'tokens': np.arange(3)}
  store.write_store(tmp_path / 'task/train', [plain, record], dict)
  opened = store.Store(tmp_path / 'task/train')
  assert opened.blocks.tolist() == [[1, 1, 3, 0], [1, 3, 5, 2]]


def test_a_store_without_blocks_has_no_file_of_them(tmp_path):
  store.write_store(tmp_path / 'task/train', [{'tokens': np.arange(3)}], dict)
  assert store.Store(tmp_path / 'task/train').blocks.shape == (0, 4)
  assert not (tmp_path / 'task/train/blocks.npy').exists()
