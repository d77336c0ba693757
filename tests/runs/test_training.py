"""The hashes of a run's ids, its first checks, and the samples at its end."""

import dataclasses
import hashlib
import json
import types

import pytest

from launch.configs import configuration
from moe.checkpoint import foreign
from moe.modalities.text import train_vocabulary
from moe.runs import preflight, training


@pytest.mark.parametrize('process', [0, 1])
def test_all_processes_write_the_samples_and_one_saves_them(
  monkeypatch, tmp_path, process
):
  made, samples = [], [{'prompt': '春', 'text': '春曉'}]
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr('jax.process_index', lambda: process)
  monkeypatch.setattr(
    training, 'samples_of', lambda run, place: made.append(place) or samples
  )
  job = types.SimpleNamespace(run=None, workdir=str(tmp_path))
  training._write_samples(job)
  assert made == [str(tmp_path)]
  path = tmp_path / 'samples.json'
  assert path.exists() == (process == 0)
  assert process or json.loads(path.read_text()) == samples


@pytest.mark.parametrize('is_safe', [False, True])
def test_a_safe_run_checks_its_initial_checkpoint_first(
  monkeypatch, tmp_path, is_safe
):
  class Over(Exception):
    pass

  def check_names(*_):
    raise Over

  checked = []
  monkeypatch.setattr(foreign, 'check', checked.append)
  monkeypatch.setattr(preflight, 'check_names', check_names)
  initial = types.SimpleNamespace(checkpoint='theirs')
  run = types.SimpleNamespace(initial=initial)
  with pytest.raises(Over):
    training.prepare(run, str(tmp_path), (), is_safe)
  assert checked == ['theirs'] * is_safe


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
