"""Tests tasks of text and codes, from their declaration to a token store."""

import numpy as np
import pytest

from moe.data.records import Feature
from moe.data.store import Store
from moe.modalities.text import Vocabulary, train_vocabulary
from tasks import codes, registry


class Pictures:
  """A source of two pictures. Each has two codes and a name."""

  splits = ('train',)

  def records(self, split):
    yield {'codes': np.array([0, 7]), 'name': '白日'}
    yield {'codes': np.array([3, 3]), 'name': '依山'}


def document(record):
  return record['name'], record['codes'], 1 + record['codes'][:, None]


@pytest.fixture
def declared():
  """A declared task. It is removed after the test."""
  codes.add_task(
    'drawn',
    Pictures(),
    document,
    ('inputs', 'targets', 'marks'),
    {
      'targets': Feature('image'),
      'marks': Feature(dtype='uint8', of='targets'),
    },
  )
  yield registry.TASKS['drawn']
  del registry.TASKS['drawn']


def test_a_name_can_be_declared_only_once(declared):
  with pytest.raises(ValueError, match="got 'drawn' again"):
    codes.add_task('drawn', Pictures(), document, ('targets',), {})


def test_a_feature_of_another_name_needs_a_kind():
  with pytest.raises(ValueError, match='got none for row'):
    codes.add_task('rows', Pictures(), document, ('targets', 'row'), {})
  assert 'rows' not in registry.TASKS


@pytest.mark.slow
def test_declared_codes_become_a_store(declared, tmp_path):
  seqio_tasks = pytest.importorskip('tasks.seqio_tasks')
  from moe.data import cache

  path = tmp_path / 'vocabulary.model'
  vocabulary = train_vocabulary(['白日依山'], 290, path, 'char')
  seqio_tasks.register()
  cache.cache_task('drawn', 'train', tmp_path, path, ranges={'image': 8})
  first = Store(tmp_path / 'drawn/train').read([0])[0]
  begin = -(-vocabulary.size // 128) * 128
  ids = [*vocabulary.encode('白日'), begin, begin + 7, 1]
  assert first['tokens'].tolist() == ids
  assert 'block_ids' not in first
  assert first['num_chars'] == 2
  # Only codes have values of `marks`; the other tokens get 0.
  zeros = [0] * len(vocabulary.encode('白日'))
  assert first['marks'].dtype == np.uint8
  assert first['marks'][:, 0].tolist() == [*zeros, 1, 8, 0]


@pytest.mark.slow
def test_codes_alone_get_a_vocabulary_of_bytes(tmp_path):
  pytest.importorskip('seqio')
  from tasks import stores

  codes.add_task(
    'codes_alone',
    Pictures(),
    lambda record: (record['codes'],),
    ('targets',),
    {'targets': Feature('image')},
  )
  try:
    directory = stores.prepare(
      [('codes_alone', ['train'])], tmp_path, None, 1024, ranges={'image': 8}
    )
  finally:
    del registry.TASKS['codes_alone']
  assert Vocabulary(f'{directory}/vocabulary.model').size < 270
  first = Store(f'{directory}/codes_alone/train').read([0])[0]
  assert np.diff(first['tokens'][:2]).tolist() == [7]
