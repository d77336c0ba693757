"""Batches of chains depend on seed and step; epochs cut long chains anew."""

import numpy as np
import pytest

from moe.data import chains
from moe.data.skips import Skips
from moe.data.store import RECORDS, Store, write_store
from moe.modalities import protein
from moe.modalities.ids import of_ranges
from moe.runs.folding_run import RANGES
from tests.folding_cases import helix

IDS = of_ranges(128, RANGES)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  directory = tmp_path_factory.mktemp('chains') / 'train'
  made = [helix(size, f'c{size}', size) for size in (10, 20, 40)]
  write_store(directory, map(protein.record_of, made), dict)
  return Store(str(directory))


def reader(store, rows=None, seed=0):
  return chains.ChainReader([store], [1.0], (4, 16), seed, IDS, rows)


def test_a_batch_depends_on_seed_and_step_alone(store):
  one, two = reader(store), reader(store)
  two.batch(0)
  for name, array in one.batch(7).items():
    np.testing.assert_array_equal(array, two.batch(7)[name])
  assert (one.batch(7)['codes'] != one.batch(8)['codes']).any()
  assert (
    one.batch(7)['codes'] != reader(store, seed=1).batch(7)['codes']
  ).any()


def test_a_host_reads_the_rows_of_its_devices(store):
  whole, part = reader(store), reader(store, np.array([1, 3]))
  for name, array in part.batch(3).items():
    np.testing.assert_array_equal(array, whole.batch(3)[name][[1, 3]])


def test_a_share_of_the_residues_is_hidden_by_seed_and_step(store):
  whole = reader(store)
  hiding = chains.ChainReader([store], [1.0], (4, 16), 0, IDS, None, 0.25)
  hidden, valid = 0, 0
  for step in range(40):
    one, two = whole.batch(step), hiding.batch(step)
    is_hidden = one['tokens'] != two.pop('tokens')
    tokens = hiding.batch(step)['tokens']
    assert (tokens[is_hidden] == IDS.mask).all()
    assert not is_hidden[~one['valid']].any()
    hidden += is_hidden.sum()
    valid += one['valid'].sum()
    for name, array in two.items():
      np.testing.assert_array_equal(array, one[name])
  assert abs(hidden / valid - 0.25) < 0.03


def test_skipped_batches_are_left_out(store):
  whole, without = reader(store), reader(store)
  without.skips = Skips(((1, 3),))
  for name, array in without.batch(1).items():
    np.testing.assert_array_equal(array, whole.batch(3)[name])
  (source,) = without.sources(1)
  sizes = np.array([10, 20, 40])[source.records]
  rows = without.batch(1)['valid'].sum(axis=1)
  np.testing.assert_array_equal(np.minimum(sizes, 16), rows)


def test_each_epoch_has_all_chains_and_cuts_long_ones_elsewhere(store):
  batches = [reader(store).batch(step) for step in range(30)]
  valid = np.concatenate([b['valid'].sum(axis=1) for b in batches])
  assert (valid[:3] <= 16).all() and sorted(valid[:3]) == [10, 16, 16]
  sequence = helix(40, seed=40).sequence
  cuts = {
    begin
    for batch in batches
    for codes in batch['codes']
    for begin in range(25)
    if protein.residues.letters(codes) == sequence[begin : begin + 16]
  }
  assert len(cuts) > 5


def test_a_row_is_centred_and_counts_from_its_first_residue(store):
  batch = reader(store).batch(0)
  for row in range(4):
    valid = batch['valid'][row]
    ca = batch['atoms'][row, valid, 1]
    np.testing.assert_allclose(ca.mean(axis=0), 0, atol=1e-4)
    numbers = batch['numbers'][row, valid]
    np.testing.assert_array_equal(numbers, np.arange(valid.sum()))
    tokens = batch['tokens'][row, valid]
    np.testing.assert_array_equal(
      IDS.codes('residue', tokens), batch['codes'][row, valid]
    )
    assert not batch['mask'][row, ~valid].any()


def test_held_out_chains_come_once_and_whole(store):
  found = list(chains.chain_batches(store, (2, 20), IDS))
  assert [b['valid'].sum(axis=1).tolist() for b in found] == [[10, 20]]


def test_a_damaged_record_leaves_its_row_empty(store, tmp_path):
  directory = tmp_path / 'train'
  made = [helix(20, 'c', 1)] * 3
  write_store(directory, map(protein.record_of, made), dict)
  path = directory / RECORDS
  data = bytearray(path.read_bytes())
  data[len(data) // 4] ^= 255
  path.write_bytes(data)
  bad = reader(Store(str(directory)))
  batches = [bad.batch(step) for step in range(3)]
  weights = np.concatenate([b['weights'] for b in batches])
  assert (weights == 0).any() == bool(bad.quarantine)
  for batch in batches:
    assert not batch['valid'][batch['weights'] == 0].any()
