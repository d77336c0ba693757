"""A training run writes samples at its end."""

import json
import types

import pytest

from moe.checkpoint import foreign
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
