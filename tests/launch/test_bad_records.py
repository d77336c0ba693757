"""A run goes on if a hundredth of its training records is unreadable."""

import json

import pytest

from launch import train
from moe.data import store
from tests.launch import tiny_run


@pytest.mark.nightly
def test_a_run_with_a_percent_of_bad_records_ends_well(tmp_path, monkeypatch):
  pytest.importorskip('seqio')
  read = store.Store.read

  def read_most(self, indices, on_error=None):
    found = read(self, indices, on_error)
    for place, index in enumerate(indices):
      if on_error and index % 100 == 99:
        on_error(int(index), ValueError('unreadable'))
        found[place] = None
    return found

  monkeypatch.setattr(store.Store, 'read', read_most)
  flags = [
    *tiny_run.FLAGS,
    '--gin.BATCH_SIZE=8',
    '--gin.TRAIN_STEPS=40',
    '--gin.WARMUP_STEPS=2',
    '--gin.run.Data.max_bad_fraction=0.01',
    f'--workdir={tmp_path}',
  ]
  assert train.main(flags) == 0
  lines = (tmp_path / 'quarantine.jsonl').read_text().splitlines()
  records = [json.loads(line)['record'] for line in lines]
  assert records and all(record % 100 == 99 for record in records)
  assert (tmp_path / 'checkpoints/40').is_dir()
