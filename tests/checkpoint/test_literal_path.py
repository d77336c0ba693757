"""Checkpoints work in directories with special characters in their names."""

import pytest

from moe.checkpoint import commit, literal_path, restore, save
from tests.checkpoint.states import (
  META,
  abstract,
  assert_same,
  make_state,
  save_steps,
)


@pytest.mark.parametrize(
  'name',
  [
    'lr[3e-3]',
    'a*b?',
    '**',
    '[!a] {b,c}',
    'a b',
    'quote\'"',
    'percent%20#hash&',
    '学习率=0.01',
    'line\nbreak',
    '~',
    '1',
    'x.orbax-checkpoint-tmp',
  ],
)
def test_what_is_saved_below_any_name_can_be_read(tmp_path, name):
  directory = tmp_path / name / 'checkpoints'
  saver = save_steps(directory, [1, 2], keep_last=1, keep_best=0)
  assert restore.damage(saver.directory / '2') == []
  state, meta = saver.restore(None, abstract(make_state()))
  assert_same(state, make_state(2))
  assert meta['seed'] == 0


def test_a_step_that_cannot_be_opened_is_not_sound(copy):
  # Earlier versions wrote such steps, which have correct hashes but no arrays.
  path = save.epath.Path(copy) / '2'
  (path / 'state' / 'manifest.ocdbt').unlink()
  commit.integrity.seal(path)
  found = restore.damage(path)
  assert len(found) == 1 and found[0].startswith('state cannot be opened')
  saver = save.Checkpointer(copy)
  state, _ = saver.restore(None, abstract(make_state()))
  assert_same(state, make_state(1))
  assert (copy / '2.corrupt').is_dir()


def test_a_step_without_arrays_never_becomes_visible(tmp_path, monkeypatch):
  # With this `glob`, Orbax does not find the files that it has written.
  monkeypatch.setattr(literal_path.LiteralPath, 'glob', lambda *_: iter(()))
  saver = save.Checkpointer(tmp_path)
  saver.save(1, make_state(1), META)
  with pytest.raises(save.SaveError, match='no state/manifest.ocdbt'):
    saver.wait()
  assert list(tmp_path.iterdir()) == []
  saver.close()
