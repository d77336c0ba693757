"""A run reads the same token stores until it ends."""

import shutil
import types

import numpy as np
import pytest

from moe.data.store import RECORDS, VOCABULARY, Store, encode_record
from moe.modalities.text import train_vocabulary
from moe.objectives import language
from moe.runs import build
from tests.data.conftest import LINES, write_texts

# The parts of a program that `open_data` needs.
PROGRAM = types.SimpleNamespace(
  own_rows=np.arange,
  objective=types.SimpleNamespace(
    fields=lambda: language.fields(2, 16), score=language.BITS_PER_CHAR
  ),
)


@pytest.fixture
def run():
  """The parts of a run that `find_data` and `open_data` need."""
  return types.SimpleNamespace(
    data=types.SimpleNamespace(
      train='task',
      evaluation=('task',),
      cache_dir='',
      vocabulary='',
      sequence_length=16,
      batch_size=2,
      task_modules=(),
      ranges=(),
      transforms=(),
      image_tokenizer='',
      max_bad_fraction=1e-4,
    ),
    model=types.SimpleNamespace(vocab_size=400, ids=None),
    settings=types.SimpleNamespace(seed=0),
  )


@pytest.fixture
def make(tmp_path):
  """A function that writes stores of both splits and returns their folder."""
  directory = tmp_path / 'cache'
  vocabulary = train_vocabulary(LINES, 300, tmp_path / VOCABULARY, 'char')
  directory.mkdir()
  shutil.copy(tmp_path / VOCABULARY, directory)

  def write(train, validation):
    write_texts(directory / 'task/train', vocabulary, train)
    write_texts(directory / 'task/validation', vocabulary, validation)
    return str(directory)

  return write


def test_a_run_still_reads_its_old_stores_after_they_are_replaced(
  run, make, tmp_path
):
  directory = make(LINES, LINES[:2])
  found = build.find_data(run, lambda *_, **__: directory)[1]
  hashes = build.held_out_hashes(run, found)
  make(['白'], ['日', '山', '床前', '明月光'])
  reader, evaluations = build.open_data(
    run, PROGRAM, directory, found, str(tmp_path)
  )
  batches = list(evaluations['task'].batches())
  scored = sum(batch.loss_weights.sum() for batch in batches)
  chars = sum(map(len, LINES[:2]))
  assert evaluations['task'].facts['chars'] == chars
  assert scored == chars + 2  # There are two end marks.
  assert np.count_nonzero(reader.batch(0).segment_ids) > 16
  # A run that starts now finds other documents with another hash.
  again = build.find_data(run, lambda *_, **__: directory)[1]
  assert build.held_out_hashes(run, again) != hashes


def test_a_run_sets_how_many_records_may_be_unreadable(run, make, tmp_path):
  directory = make(['白'] * 99 + ['日山'], LINES[:2])
  store = tmp_path / 'cache/task/train'
  content = (store / RECORDS).read_bytes()
  last = encode_record(Store(store).read([99])[0])
  (store / RECORDS).write_bytes(content.replace(last, last[:-1] + b'\xff'))
  found = build.find_data(run, lambda *_, **__: directory)[1]

  def quarantine(share):
    run.data.max_bad_fraction = share
    reader, _ = build.open_data(run, PROGRAM, directory, found, str(tmp_path))
    for step in range(8):
      reader.batch(step)
    return [entry['record'] for entry in reader.quarantine]

  assert quarantine(0.01) == [99]
  with pytest.raises(ValueError, match='raise run.Data.max_bad_fraction'):
    quarantine(0.009)
