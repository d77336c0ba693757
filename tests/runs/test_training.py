"""The hashes of a run's ids, and the samples at its end."""

import dataclasses
import hashlib
import logging
import types

from launch.configs import configuration
from moe.modalities.text import train_vocabulary
from moe.runs import trained, training


def test_a_run_of_several_processes_writes_no_samples(
  monkeypatch, tmp_path, caplog
):
  def read_back(run, place):
    raise AssertionError('this would wait for the other processes')

  caplog.set_level(logging.INFO, 'moe')
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr(trained, 'read_back', read_back)
  run = types.SimpleNamespace(prompts=('春',))
  assert training.samples_of(run, str(tmp_path)) == []
  assert 'no samples' in caplog.text


def test_the_ids_of_a_run_depend_on_its_image_tokenizer(tmp_path):
  vocabulary = train_vocabulary(['夜雨'], 300, tmp_path / 'vocabulary.model')
  path = tmp_path / 'image_tokenizer.bin'
  data = dataclasses.replace(
    configuration.load(['runs/quickstart.gin'], []).data,
    vocabulary=str(tmp_path / 'vocabulary.model'),
    ranges=(('image', 8),),
    image_tokenizer=str(path),
  )
  missing = training.hashes_of_files(data)
  path.write_bytes(b'weights')
  found = training.hashes_of_files(data)
  sha256 = hashlib.sha256(b'weights').hexdigest()
  assert found == {
    'vocabulary_sha256': vocabulary.sha256,
    'ids_sha256': data.ids(vocabulary.size, sha256).sha256,
  }
  assert missing['ids_sha256'] == data.ids(vocabulary.size).sha256
  assert missing != found
