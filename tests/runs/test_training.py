"""A training run may write samples at its end."""

import logging
import types

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
