import numpy as np
import pytest

from moe.data.reader import Reader
from moe.data.store import Store
from moe.data.transforms import DropCondition, MaskBlocks, ReadPatches, shape_of
from tests.data import mixed


def masked(batch):
  return (batch.tokens == mixed.SPACE.mask).sum()


@pytest.fixture
def folded(tmp_path):
  return mixed.write(tmp_path / 'v/folded/train', 'folded', 6)


def test_a_masked_record_is_worked_by_hand():
  record = {
    'tokens': np.array([9, 5, 6, 7, 8, 1], np.uint16),
    'block_ids': np.array([0, 1, 1, 1, 1, 0], np.uint8),
  }
  masked = MaskBlocks(0.5)(record, np.uint64(3), mixed.SPACE)
  hidden = masked['inputs'] == mixed.SPACE.mask
  assert hidden.sum() == 2 and not hidden[[0, 5]].any()
  assert (masked['inputs'][~hidden] == record['tokens'][~hidden]).all()


def test_a_block_that_is_a_condition_is_not_hidden():
  record = {
    'tokens': np.array([5, 6, 7, 1], np.uint16),
    'block_ids': np.array([1, 1, 0, 0], np.uint8),
    'loss_weights': np.array([0, 0, 1, 1], np.uint8),
  }
  masked = MaskBlocks(1.0)(record, np.uint64(3), mixed.SPACE)
  assert (masked['inputs'] == record['tokens']).all()


def test_only_hidden_tokens_of_a_block_are_predicted(folded):
  reader = Reader([folded], [1], 9, 4, 0, transforms=[MaskBlocks(0.25)])
  batch = reader.batch(0)
  # Place p + 1 reads the token that place p predicts.
  hidden = batch.tokens[:, 1:] == mixed.SPACE.mask
  assert (hidden.sum(axis=1) == 2).all()
  assert ((batch.loss_weights[:, :-1] > 0) == hidden).all()
  assert (batch.loss_weights[:, -1] == 1).all()  # The end mark is predicted.
  assert (batch.modality[:, 1:] == 2).all() and (
    batch.modality[:, 0] == 0
  ).all()


def test_what_is_hidden_depends_on_seed_and_step_alone(folded):
  def tokens(seed, step):
    reader = Reader([folded], [1], 9, 6, seed, transforms=[MaskBlocks(0.5)])
    return reader.batch(step).tokens

  assert np.array_equal(tokens(0, 1), tokens(0, 1))
  order = lambda seed, step: (tokens(seed, step) == mixed.SPACE.mask).tolist()
  assert sorted(order(0, 0)) != sorted(order(0, 1))  # The second epoch differs.
  assert sorted(order(0, 0)) != sorted(order(1, 0))


def test_a_transform_that_keeps_lengths_keeps_the_plan(folded):
  Reader([folded], [1], 20, 1, 0, transforms=[MaskBlocks()])
  assert [path.name for path in folded.glob('plan-*')] == ['plan-20-v1.npz']


class Doubled:
  """A transform that repeats every document once."""

  def __repr__(self):
    return 'Doubled()'

  def declare(self, shape):
    return shape._replace(lengths=2 * shape.lengths, blocks=shape.blocks[:0])

  def __call__(self, record, key, ids):
    return {'tokens': np.tile(record['tokens'], 2)}


def test_rows_are_planned_by_declared_lengths(tmp_path):
  drawn = mixed.write(tmp_path / 'v/drawn/train', 'drawn', 3)
  batch = Reader([drawn], [1], 20, 3, 0, transforms=[Doubled()]).batch(0)
  assert (batch.segment_ids == 1).all()
  assert (batch.targets[:, :10] == batch.targets[:, 10:]).all()


def test_a_length_that_was_not_declared_is_refused(tmp_path):
  class Short(Doubled):
    def __call__(self, record, key, ids):
      return record

  drawn = mixed.write(tmp_path / 'v/drawn/train', 'drawn', 3)
  with pytest.raises(ValueError, match='it declares, 20, got 10'):
    Reader([drawn], [1], 20, 3, 0, transforms=[Short()]).batch(0)


def test_shown_tokens_count_as_not_scored(folded):
  # Each of six documents has eight residues, two of them hidden, and an end
  # mark.
  counts = shape_of(Store(folded), MaskBlocks(0.25)).counts
  assert counts == {'scored_tokens': 18, 'chars': 12}


def test_a_block_that_is_to_be_predicted_needs_a_transform(folded):
  with pytest.raises(ValueError, match='must be hidden'):
    Reader([folded], [1], 9, 4, 0)


def test_the_hash_of_the_data_tells_transforms_apart(folded):
  hashes = {
    Reader([folded], [1], 9, 4, 0, transforms=[MaskBlocks(f)]).manifest_hash
    for f in (0.25, 0.5)
  }
  assert len(hashes) == 2


@pytest.mark.parametrize('fraction', [0, 1.1])
def test_a_fraction_out_of_range_is_refused(fraction):
  with pytest.raises(ValueError, match='fraction='):
    MaskBlocks(fraction)


def test_a_condition_is_hidden_as_a_whole_or_not_at_all():
  record = {
    'tokens': np.array([5, 6, 7, 8, 1], np.uint16),
    'loss_weights': np.array([0, 0, 1, 1, 1], np.uint8),
  }
  drop, hidden = DropCondition(0.25), 0
  for key in range(1000):
    inputs = drop(record, np.uint64(key), mixed.SPACE).get('inputs')
    if inputs is not None:
      hidden += 1
      assert inputs.tolist() == [mixed.SPACE.mask] * 2 + [7, 8, 1]
  assert 200 < hidden < 300


def test_patches_are_read_in_place_of_codes_or_hidden_with_them():
  patches = np.array([[9], [9], [0], [0], [0]], np.uint8)
  record = {
    'tokens': np.array([5, 6, 7, 8, 1], np.uint16),
    'loss_weights': np.array([0, 0, 1, 1, 1], np.uint8),
    'patches': patches,
  }
  read, hidden = ReadPatches(0.25), 0
  for key in range(1000):
    found = read(record, np.uint64(key), mixed.SPACE)
    assert found['inputs'].tolist() == [mixed.SPACE.mask] * 2 + [7, 8, 1]
    hidden += not found['patches'].any()
  assert 200 < hidden < 300
  np.testing.assert_array_equal(record['patches'], patches)


def test_reading_patches_needs_patches():
  record = {'tokens': np.array([5]), 'loss_weights': np.array([1])}
  with pytest.raises(ValueError, match='encode --patches'):
    ReadPatches()(record, np.uint64(0), mixed.SPACE)


def test_dropping_is_refused_where_a_block_is_predicted(folded):
  with pytest.raises(ValueError, match='give them transforms.MaskBlocks'):
    shape_of(Store(folded), DropCondition())
