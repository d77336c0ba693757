import numpy as np
import pytest

from moe.data.pictures import PictureReader, picture_batches
from moe.data.skips import Skips
from moe.data.store import RECORDS, Store, write_store


def write(directory, values):
  """Writes a store of 4 x 4 pictures, each with one value in all pixels."""
  records = ({'pixels': np.full((4, 4, 3), v, np.uint8)} for v in values)
  write_store(directory, records, dict)
  return Store(directory)


def values(batch):
  return batch['pictures'][:, 0, 0, 0].tolist()


def test_an_epoch_has_every_picture_once_in_an_order_of_its_own(tmp_path):
  store = write(tmp_path / 'a', range(1, 9))
  read = lambda seed, step: values(
    PictureReader([store], [1], 8, seed, (4, 4)).batch(step)
  )
  assert sorted(read(0, 0)) == sorted(read(0, 1)) == list(range(1, 9))
  assert read(0, 0) == read(0, 0)
  assert read(0, 0) != read(0, 1) and read(0, 0) != read(1, 0)


def test_hosts_read_their_rows_of_the_same_batch(tmp_path):
  stores = [write(tmp_path / n, v) for n, v in (('a', range(4)), ('b', [9]))]
  read = lambda rows: values(
    PictureReader(stores, [3, 1], 8, 0, (4, 4), rows).batch(2)
  )
  assert read(np.arange(4)) + read(np.arange(4, 8)) == read(None)
  assert read(None).count(9) == 2


def test_skipped_batches_are_left_out(tmp_path):
  store = write(tmp_path / 'a', range(1, 9))
  whole, without = (PictureReader([store], [1], 2, 0, (4, 4)) for _ in range(2))
  without.skips = Skips(((1, 3),))
  assert values(without.batch(1)) == values(whole.batch(3))
  (source,) = without.sources(1)
  # The picture in record n has the value n + 1.
  assert (source.records + 1).tolist() == values(whole.batch(3))


def test_a_damaged_picture_leaves_its_row_empty(tmp_path):
  store = write(tmp_path / 'a', [7] * 8)
  path = tmp_path / 'a' / RECORDS
  data = bytearray(path.read_bytes())
  data[data.find(bytes([7] * 48)) + 3] ^= 1
  path.write_bytes(bytes(data))
  reader = PictureReader([store], [1], 8, 0, (4, 4))
  batch = reader.batch(0)
  assert batch['weights'].sum() == 7 and values(batch).count(0) == 1
  assert len(reader.quarantine) == 1


def test_held_out_pictures_are_read_once_and_filled_up(tmp_path):
  store = write(tmp_path / 'a', [1, 2, 3])
  batches = list(picture_batches(store, 2, (4, 4)))
  assert [values(batch) for batch in batches] == [[1, 2], [3, 0]]
  assert batches[1]['weights'].tolist() == [1, 0]


def test_pictures_of_another_size_are_refused(tmp_path):
  store = write(tmp_path / 'a', [1])
  with pytest.raises(ValueError, match='change PIXELS'):
    PictureReader([store], [1], 1, 0, (8, 8)).batch(0)
