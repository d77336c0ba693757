"""Saves and restores: damage, fallback to an older step, meshes, failures."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe import outages
from moe.checkpoint import integrity, listing, save
from tests.checkpoint.states import META, abstract, assert_same, make_state


def test_what_is_saved_comes_back_bit_for_bit_with_its_meta(copy):
  state, meta = save.Checkpointer(copy).restore(None, abstract(make_state()))
  assert_same(state, make_state(2))
  assert meta['step'] == 2
  assert meta['manifest_hash'] == 'abc'
  assert meta['versions']['jax'] == jax.__version__


def test_the_arrays_may_be_donated_while_they_are_written(tmp_path):
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = make_state(5)
  saver = save.Checkpointer(tmp_path)
  saver.save(5, state, META)
  for _ in range(3):
    state = bump(state)
  saver.wait()
  got, _ = saver.restore(5, abstract(make_state()))
  assert_same(got, make_state(5))


def test_a_damaged_newest_step_is_passed_over_with_a_warning(copy, caplog):
  victim = copy / '2' / 'state' / '_METADATA'
  victim.write_bytes(victim.read_bytes()[:-1])
  saver = save.Checkpointer(copy)
  state, _ = saver.restore(None, abstract(make_state()))
  assert_same(state, make_state(1))
  assert 'Checkpoint 2' in caplog.text
  assert 'state/_METADATA' in caplog.text
  assert saver.latest_step() == 1
  assert (copy / '2.corrupt').is_dir()


def test_two_damaged_newest_steps_are_passed_over(copy):
  saver = save.Checkpointer(copy, keep_last=9)
  saver.save(3, make_state(3), META)
  saver.close()
  (copy / '2' / 'meta' / 'metadata').unlink()
  victim = copy / '3' / 'state' / '_METADATA'
  victim.write_bytes(victim.read_bytes()[:-1])
  saver = save.Checkpointer(copy, keep_last=9)
  assert_same(saver.restore(None, abstract(make_state()))[0], make_state(1))
  assert listing.steps(copy) == [1]
  assert {p.name for p in copy.iterdir()} == {'1', '2.corrupt', '3.corrupt'}


def test_a_damaged_step_can_be_saved_again(copy):
  (copy / '2' / integrity.NAME).unlink()
  saver = save.Checkpointer(copy)
  saver.restore(None, abstract(make_state()))
  assert saver.save(2, make_state(7), META)
  saver.wait()
  assert_same(saver.restore(None, abstract(make_state()))[0], make_state(7))


def test_no_sound_step_at_all_is_an_error_that_removes_nothing(copy):
  for step in ('1', '2'):
    (copy / step / 'meta' / 'metadata').unlink()
  saver = save.Checkpointer(copy)
  with pytest.raises(ValueError, match='meta/metadata is missing in step 1'):
    saver.restore(None, abstract(make_state()))
  assert listing.steps(copy) == [1, 2]


def test_a_damaged_step_asked_for_by_number_is_an_error(copy):
  (copy / '2' / 'meta' / 'metadata').unlink()
  with pytest.raises(
    ValueError, match='got meta/metadata is missing: step 1 is'
  ):
    save.Checkpointer(copy).restore(2, abstract(make_state()))


def test_an_absent_step_is_an_error_that_lists_the_others(copy):
  with pytest.raises(ValueError, match=r'Step 9 .* \[1, 2\]'):
    save.Checkpointer(copy).restore(9, abstract(make_state()))


def test_the_same_step_is_written_once(tmp_path):
  saver = save.Checkpointer(tmp_path)
  assert saver.save(1, make_state(1), META)
  assert not saver.save(1, make_state(2), META)
  saver.close()


def test_an_older_step_is_not_saved_beside_newer_ones(copy):
  saver = save.Checkpointer(copy)
  saver.restore(1, abstract(make_state()))
  with pytest.raises(ValueError, match='got step 2: move the newer ones away'):
    saver.save(0, make_state(0), META)


def test_a_checkpoint_moves_from_eight_devices_to_one_and_back(tmp_path):
  mesh = jax.make_mesh((8,), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  wanted = jnp.arange(64.0).reshape(16, 4)
  saver = save.Checkpointer(tmp_path)
  saver.save(1, {'params': jax.device_put(wanted, rows)}, META)
  saver.wait()
  one, _ = saver.restore(1, abstract({'params': wanted}))
  assert one['params'].sharding.num_devices == 1
  saver.save(2, one, META)
  saver.wait()
  eight, _ = saver.restore(2, abstract({'params': wanted}, rows))
  assert eight['params'].sharding == rows
  np.testing.assert_array_equal(eight['params'], wanted)
  saver.close()


def test_a_checkpoint_of_other_data_is_refused(copy):
  saver = save.Checkpointer(copy)
  with pytest.raises(ValueError, match="manifest_hash='abc', got 'xyz'"):
    saver.restore(2, abstract(make_state()), {'manifest_hash': 'xyz'})


def test_a_failed_save_is_one_sentence_and_harms_nothing(copy, monkeypatch):
  def full(_):
    raise OSError(28, 'No space left on device')

  saver = save.Checkpointer(copy)
  with monkeypatch.context() as patch:
    patch.setattr(integrity, 'seal', full)
    saver.save(3, make_state(3), META)
    while any(t.name == 'checkpoint' for t in threading.enumerate()):
      pass
    with pytest.raises(
      save.SaveError, match='3 .* No space left on device; step 2 is int'
    ):
      saver.check()
  assert sorted(path.name for path in copy.iterdir()) == ['1', '2']
  saver.save(3, make_state(3), META)
  saver.close()
  assert_same(saver.restore(None, abstract(make_state()))[0], make_state(3))


def test_what_comes_before_a_commit_does_not_keep_the_caller_waiting(tmp_path):
  may_go_on, seen = threading.Event(), []

  def before_commit():
    assert may_go_on.wait(60)
    seen.append(listing.steps(tmp_path))

  saver = save.Checkpointer(tmp_path, before_commit=before_commit)
  saver.save(1, make_state(1), META)
  assert saver.is_saving and not seen
  may_go_on.set()
  saver.close()
  assert seen == [[]] and listing.steps(tmp_path) == [1]


def test_a_step_is_not_committed_if_what_comes_before_fails(tmp_path):
  def fail():
    raise outages.Outage('the bucket takes no file')

  saver = save.Checkpointer(tmp_path, before_commit=fail)
  saver.save(1, make_state(1), META)
  with pytest.raises(save.SaveError, match='the bucket takes no file') as found:
    saver.close()
  assert outages.is_outage(found.value)
  assert listing.steps(tmp_path) == []


def test_a_directory_that_cannot_be_made_fails_the_save(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  saver = save.Checkpointer(tmp_path / 'file' / 'checkpoints')
  with pytest.raises(save.SaveError, match='Not a directory'):
    saver.save(1, make_state(1), META)
    saver.close()


def test_start_up_finds_an_unwritable_directory(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(ValueError, match='must be writable.*Not a directory'):
    save.check_writable(tmp_path / 'file' / 'run', 1)


def test_start_up_finds_a_full_disk(tmp_path):
  with pytest.raises(ValueError, match=r'needs 1024\.0 TiB .* free'):
    save.check_writable(tmp_path / 'run', 2**50)
  save.check_writable(tmp_path / 'run', 1)
  assert list((tmp_path / 'run').iterdir()) == []
