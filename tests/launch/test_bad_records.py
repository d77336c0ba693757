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
  flags = [*tiny_run.FLAGS, '--gin.TRAIN_STEPS=20', f'--workdir={tmp_path}']
  flags.append('--gin.WARMUP_STEPS=2')
  assert train.main(flags) == 2  # Without a limit of its own, 0.01% may be bad.
  assert train.main([*flags, '--gin.run.Data.max_bad_fraction=0.01']) == 0
  lines = (tmp_path / 'quarantine.jsonl').read_text().splitlines()
  assert all(json.loads(line)['record'] % 100 == 99 for line in lines)
  assert (tmp_path / 'checkpoints/20').is_dir()
