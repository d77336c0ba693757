"""Documents with codes of pictures become records."""

import numpy as np
import pytest

from moe.data import records
from moe.data.records import Feature, Tokeniser
from moe.modalities.ids import of_ranges
from moe.modalities.text import train_vocabulary


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  text = ''.join(chr(0x4E00 + i) for i in range(60))
  return train_vocabulary([text], 400, path, 'char')


def tokeniser_of(vocabulary, features, max_bad_fraction=0.0):
  """A tokeniser for texts and for pictures, whose codes are 0 to 3."""
  return Tokeniser(
    'documents/train',
    vocabulary,
    max_bad_fraction,
    lambda count: None,
    of_ranges(vocabulary.size, {'image': 4}),
    features,
  )


def test_codes_are_counted_by_row_and_column_from_1():
  row, column = records.places(6, (2, 3))
  np.testing.assert_array_equal(row, [1, 1, 1, 2, 2, 2])
  np.testing.assert_array_equal(column, [1, 2, 3, 1, 2, 3])


def test_a_grid_must_be_full():
  with pytest.raises(ValueError, match='5 codes of a picture'):
    records.places(5, (2, 3))


@pytest.mark.parametrize('is_drawn', [True, False])
def test_text_and_the_end_mark_lie_in_no_row(vocabulary, is_drawn):
  codes = 'targets' if is_drawn else 'inputs'
  text = 'inputs' if is_drawn else 'targets'
  feature = Feature('image', is_block=not is_drawn, grid=(1, 2))
  tokeniser = tokeniser_of(vocabulary, {codes: feature})
  example = {f'{text}_pretokenized': '一丁', codes: np.array([3, 0])}
  (record,) = tokeniser.records([example])
  num_text = len(vocabulary.encode('一丁'))
  text_zeros = [0] * num_text
  wanted = [*text_zeros, 1, 2, 0] if is_drawn else [1, 2, *text_zeros, 0]
  np.testing.assert_array_equal(record['column'], wanted)
  np.testing.assert_array_equal(record['row'], np.minimum(wanted, 1))


def test_a_malformed_document_is_not_in_the_counts(vocabulary):
  # The picture of the second document has 1 code, but its grid has 2.
  features = {'inputs': Feature('image', grid=(1, 2))}
  tokeniser = tokeniser_of(vocabulary, features, max_bad_fraction=0.5)
  both = [
    {'inputs': np.array(codes), 'targets_pretokenized': '一丁'}
    for codes in ([3, 0], [3])
  ]
  assert len(list(tokeniser.records(both))) == 1
  counts = tokeniser.counts
  assert (counts.documents, counts.malformed, counts.chars) == (2, 1, 2)
