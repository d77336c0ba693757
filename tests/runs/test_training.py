"""What a training run ends with."""

import logging
import types

from moe.runs import trained, training


def test_one_of_several_processes_does_not_wait_for_the_others(
  monkeypatch, tmp_path, caplog
):
  def read_back(run, place):
    raise AssertionError('this waits for the others')

  caplog.set_level(logging.INFO, 'moe')
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr(trained, 'read_back', read_back)
  run = types.SimpleNamespace(prompts=('春',))
  assert training.samples_of(run, str(tmp_path)) == []
  assert 'no samples' in caplog.text
