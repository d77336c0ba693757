"""Checkpoints: commit, damage, fallback, keep rules, meshes, partial reads."""

import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe.train import checkpoint, integrity, restore

META = {'manifest_hash': 'abc', 'mesh': {'data': 1}, 'seed': 0}


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any
  state: Any


def make_state(step=0, width=4):
  params = {
    'decoder': {'kernel': jnp.arange(8.0 * width).reshape(8, width) + step},
    'head': jnp.full((3,), 0.5 + step),
  }
  return State(
    step=jnp.int32(step),
    params=params,
    opt_state=optax.adamw(1e-3).init(params),
    state={'router_bias': jnp.arange(2.0)},
  )


def abstract(state, sharding=None):
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )


def save(directory, steps, metrics=None, **options):
  saver = checkpoint.Checkpointer(directory, **options)
  for step in steps:
    scores = {'bits_per_char': metrics[step]} if metrics else None
    saver.save(step, make_state(step), META, scores)
  saver.close()
  return saver


def assert_same(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def files_of(directory):
  return sorted(p for p in pathlib.Path(directory).rglob('*') if p.is_file())


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with the steps 1 and 2; tests work on copies of it."""
  directory = tmp_path_factory.mktemp('saved')
  save(directory, [1, 2])
  return directory


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'copy')
  return tmp_path / 'copy'


def test_what_is_saved_comes_back_bit_for_bit_with_its_meta(copy):
  state, meta = checkpoint.Checkpointer(copy).restore(
    None, abstract(make_state())
  )
  assert_same(state, make_state(2))
  assert meta['step'] == 2
  assert meta['manifest_hash'] == 'abc'
  assert meta['versions']['jax'] == jax.__version__


def test_the_arrays_may_be_donated_while_they_are_written(tmp_path):
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = make_state(5)
  saver = checkpoint.Checkpointer(tmp_path)
  saver.save(5, state, META)
  for _ in range(3):
    state = bump(state)
  saver.wait()
  got, _ = saver.restore(5, abstract(make_state()))
  assert_same(got, make_state(5))


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete'])
def test_damage_of_any_file_is_found_and_named(copy, damage):
  files = files_of(copy / '2')
  assert len(files) >= 8
  for path in files:
    content = path.read_bytes()
    if damage == 'delete':
      path.unlink()
    elif damage == 'truncate':
      path.write_bytes(content[:-1])
    else:
      middle = len(content) // 2
      flipped = bytes([content[middle] ^ 1])
      path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    problems = integrity.check(copy / '2')
    assert len(problems) >= 1, f'{damage} of {path} went unseen'
    assert str(path.relative_to(copy / '2')) in problems[0]
    path.write_bytes(content)
  assert integrity.check(copy / '2') == []


def test_every_byte_of_the_manifest_counts(copy):
  path = copy / '2' / integrity.NAME
  content = path.read_bytes()
  for place in range(0, len(content), 7):
    flipped = bytes([content[place] ^ 32])  # Changes the case of a letter.
    path.write_bytes(content[:place] + flipped + content[place + 1 :])
    assert integrity.check(copy / '2'), f'byte {place} went unseen'


def test_a_damaged_newest_step_is_passed_over_with_a_warning(copy, caplog):
  victim = copy / '2' / 'state' / '_METADATA'
  victim.write_bytes(victim.read_bytes()[:-1])
  saver = checkpoint.Checkpointer(copy)
  state, _ = saver.restore(None, abstract(make_state()))
  assert_same(state, make_state(1))
  assert 'Checkpoint 2' in caplog.text
  assert 'state/_METADATA' in caplog.text
  assert saver.latest_step() == 1
  assert (copy / '2.corrupt').is_dir()


def test_a_damaged_step_can_be_saved_again(copy):
  (copy / '2' / integrity.NAME).unlink()
  saver = checkpoint.Checkpointer(copy)
  saver.restore(None, abstract(make_state()))
  assert saver.save(2, make_state(7), META)
  saver.wait()
  assert_same(saver.restore(None, abstract(make_state()))[0], make_state(7))


def test_no_sound_step_at_all_is_an_error_that_removes_nothing(copy):
  for step in ('1', '2'):
    (copy / step / 'meta' / 'metadata').unlink()
  saver = checkpoint.Checkpointer(copy)
  with pytest.raises(ValueError, match='meta/metadata is missing in step 1'):
    saver.restore(None, abstract(make_state()))
  assert restore.steps(copy) == [1, 2]


def test_a_damaged_step_asked_for_by_number_is_an_error(copy):
  (copy / '2' / 'meta' / 'metadata').unlink()
  with pytest.raises(ValueError, match='meta/metadata is missing in step 2'):
    checkpoint.Checkpointer(copy).restore(2, abstract(make_state()))


def test_an_absent_step_is_an_error_that_lists_the_others(copy):
  with pytest.raises(ValueError, match=r'Step 9 .* \[1, 2\]'):
    checkpoint.Checkpointer(copy).restore(9, abstract(make_state()))


def test_what_a_killed_save_leaves_is_removed_and_never_read(copy):
  (copy / '2').rename(copy / '3.orbax-checkpoint-tmp')
  (copy / '3.orbax-checkpoint-tmp' / integrity.NAME).unlink()
  assert restore.steps(copy) == [1]
  assert checkpoint.Checkpointer(copy).latest_step() == 1
  assert [path.name for path in copy.iterdir()] == ['1']


def test_the_hashes_are_there_before_the_step_is_visible(tmp_path, monkeypatch):
  seen = []
  seal = integrity.seal
  monkeypatch.setattr(
    integrity, 'seal', lambda d: (seen.append(restore.steps(tmp_path)), seal(d))
  )
  save(tmp_path, [4])
  assert seen == [[]]
  assert integrity.check(tmp_path / '4') == []


def test_on_an_object_store_the_marker_commits(tmp_path, monkeypatch):
  monkeypatch.setattr(integrity, 'on_object_store', lambda _: True)
  monkeypatch.setattr(integrity, 'seal', sealing_as_on_disk(tmp_path))
  saver = save(tmp_path, [1, 2, 3], keep_last=2, keep_best=0)
  assert restore.steps(tmp_path) == [2, 3]
  assert_same(saver.restore(3, abstract(make_state()))[0], make_state(3))
  (tmp_path / '3' / restore.MARKER).unlink()
  assert restore.steps(tmp_path) == [2]
  assert checkpoint.Checkpointer(tmp_path).latest_step() == 2
  assert not (tmp_path / '3').exists()


def sealing_as_on_disk(root):
  """`seal`, asserting that the step it seals is not committed yet."""
  seal = integrity.seal

  def checked(directory):
    assert directory.parent == root
    assert not (directory / restore.MARKER).exists()
    seal(directory)

  return checked


def test_the_last_and_the_best_steps_stay(tmp_path):
  scores = {1: 9.0, 2: 5.0, 3: 7.0, 4: 6.0, 5: 8.0}
  save(tmp_path, [1, 2, 3, 4, 5], scores, keep_last=2, keep_best=1)
  assert restore.steps(tmp_path) == [2, 4, 5]
  assert restore.best_step(tmp_path) == 2
  assert len(list(tmp_path.iterdir())) == 3


def test_a_step_without_a_metric_or_with_nan_is_never_the_best(tmp_path):
  saver = save(tmp_path, [1, 2], {1: float('nan'), 2: 5.0}, keep_last=5)
  saver.save(3, make_state(3), META)
  saver.close()
  assert restore.best_step(tmp_path) == 2
  assert restore.ranking(tmp_path) == [2]


def test_a_step_that_is_scored_after_its_commit_is_ranked_and_sound(tmp_path):
  saver = save(tmp_path, [1, 2], {1: 6.0, 2: 7.0}, keep_last=5)
  saver.save(3, make_state(3), META)
  saver.close()
  restore.add_metrics(tmp_path / '3', {'bits_per_char': 5.0})
  assert restore.ranking(tmp_path) == [3, 1, 2]
  assert not integrity.check(tmp_path / '3')


def test_the_same_step_is_written_once(tmp_path):
  saver = checkpoint.Checkpointer(tmp_path)
  assert saver.save(1, make_state(1), META)
  assert not saver.save(1, make_state(2), META)
  saver.close()


def test_an_older_step_is_not_saved_beside_newer_ones(copy):
  saver = checkpoint.Checkpointer(copy)
  saver.restore(1, abstract(make_state()))
  with pytest.raises(ValueError, match='got step 2: move the newer ones away'):
    saver.save(0, make_state(0), META)


def test_eight_devices_to_one_and_back(tmp_path):
  mesh = jax.make_mesh((8,), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  wanted = jnp.arange(64.0).reshape(16, 4)
  saver = checkpoint.Checkpointer(tmp_path)
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


def test_another_shape_is_named_with_both_shapes(copy):
  with pytest.raises(ValueError, match=r'kernel is \(8, 6\) .* \(8, 4\)'):
    checkpoint.Checkpointer(copy).restore(2, abstract(make_state(width=6)))


def test_missing_and_superfluous_arrays_are_named(copy):
  other = make_state()._replace(state={'ema': jnp.zeros(2)})
  with pytest.raises(
    ValueError,
    match='state/ema is not in the checkpoint; '
    'state/router_bias is not in the model',
  ):
    checkpoint.Checkpointer(copy).restore(2, abstract(other))


def test_other_data_than_the_checkpoint_was_trained_on_are_refused(copy):
  saver = checkpoint.Checkpointer(copy)
  with pytest.raises(ValueError, match="manifest_hash='abc', got 'xyz'"):
    saver.restore(2, abstract(make_state()), {'manifest_hash': 'xyz'})


def test_a_failed_save_is_one_sentence_and_harms_nothing(copy, monkeypatch):
  def full(_):
    raise OSError(28, 'No space left on device')

  saver = checkpoint.Checkpointer(copy)
  with monkeypatch.context() as patch:
    patch.setattr(integrity, 'seal', full)
    saver.save(3, make_state(3), META)
    while any(t.name == 'checkpoint' for t in threading.enumerate()):
      pass
    with pytest.raises(
      checkpoint.SaveError, match='3 .* No space left on device; step 2 is int'
    ):
      saver.check()
  assert sorted(path.name for path in copy.iterdir()) == ['1', '2']
  saver.save(3, make_state(3), META)
  saver.close()
  assert_same(saver.restore(None, abstract(make_state()))[0], make_state(3))


def test_a_directory_that_cannot_be_made_fails_the_save(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  saver = checkpoint.Checkpointer(tmp_path / 'file' / 'checkpoints')
  with pytest.raises(checkpoint.SaveError, match='Not a directory'):
    saver.save(1, make_state(1), META)
    saver.close()


def test_start_up_finds_an_unwritable_directory(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(ValueError, match='must be writable.*Not a directory'):
    checkpoint.check_writable(tmp_path / 'file' / 'run', 1)


def test_start_up_finds_a_full_disk(tmp_path):
  with pytest.raises(ValueError, match=r'needs 1024\.0 TiB .* free'):
    checkpoint.check_writable(tmp_path / 'run', 2**50)
  checkpoint.check_writable(tmp_path / 'run', 1)
  assert list((tmp_path / 'run').iterdir()) == []


def test_parameters_alone_are_read_from_the_directory_of_a_run(copy):
  run = copy.parent / 'run'
  run.mkdir()
  copy.rename(run / 'checkpoints')
  for place in (run, run / 'checkpoints', run / 'checkpoints' / '2'):
    tree, meta = restore.load_params(place)
    wanted = make_state(2)
    assert_same(tree, {'params': wanted.params, 'state': wanted.state})
    assert meta['step'] == 2


def test_parameters_of_a_damaged_newest_step_come_from_the_one_before(
  copy, caplog
):
  (copy / '2' / 'state' / '_METADATA').unlink()
  _, meta = restore.load_params(copy)
  assert meta['step'] == 1
  assert 'state/_METADATA is missing' in caplog.text
  with pytest.raises(ValueError, match='state/_METADATA is missing in step 2'):
    restore.load_params(copy / '2')
  assert restore.steps(copy) == [1, 2]  # A reader changes nothing.


def test_parameters_are_cast_and_placed_as_asked(copy):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
  target = {'params': jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_state().params
  )}  # fmt: skip
  tree, _ = restore.load_params(copy, 1, target, sharding=sharding)
  assert tree['params']['head'].dtype == jnp.bfloat16
  assert tree['params']['head'].devices() == {jax.devices()[3]}
  assert tree['params']['head'].tolist() == [1.5, 1.5, 1.5]


def test_an_assignment_renames_and_keeps(copy):
  target = {'params': {
    'encoder': {'kernel': jnp.zeros((8, 4)), 'twin': jnp.zeros((8, 4))},
    'new': jnp.full((2,), 7.0),
  }}  # fmt: skip
  assignment = [
    ('params/new', None),
    (r'params/encoder/\w+', 'params/decoder/kernel'),
  ]
  tree, _ = restore.load_params(copy, 2, target, assignment=assignment)
  kernel = make_state(2).params['decoder']['kernel']
  np.testing.assert_array_equal(tree['params']['encoder']['kernel'], kernel)
  np.testing.assert_array_equal(tree['params']['encoder']['twin'], kernel)
  np.testing.assert_array_equal(tree['params']['new'], [7.0, 7.0])


def test_an_assignment_to_nothing_names_both_paths(copy):
  target = {'params': {'encoder': jnp.zeros((8, 4))}}
  assignment = [('params/encoder', 'params/decode')]
  with pytest.raises(
    ValueError, match=r'params/encoder .* \(looked for params/decode\)'
  ):
    restore.load_params(copy, 2, target, assignment=assignment)


def test_without_assignment_every_parameter_must_be_used(copy):
  target = {'params': {'head': jnp.zeros((3,))}}
  with pytest.raises(ValueError, match='decoder/kernel is not in the model'):
    restore.load_params(copy, 2, target)


def test_a_directory_without_checkpoints_is_named(tmp_path):
  with pytest.raises(ValueError, match='got one without any'):
    restore.load_params(tmp_path)


def test_metadata_is_plain_json(copy):
  meta = json.loads((copy / '2' / 'meta' / 'metadata').read_text())
  assert meta == restore.read_meta(copy / '2')


_SAVE_FOR_EVER = """
import itertools, sys
import jax.numpy as jnp
from moe.train import checkpoint
saver = checkpoint.Checkpointer(sys.argv[1], keep_last=2)
for step in itertools.count((saver.latest_step() or 0) + 1):
  saver.save(step, {'params': jnp.full((1000,), float(step))}, {})
  print(step, flush=True)
"""


@pytest.mark.parametrize(
  'delays',
  [
    pytest.param([0.0, 0.1], marks=pytest.mark.slow),
    pytest.param([0.02 * n for n in range(10)], marks=pytest.mark.nightly),
  ],
)
def test_a_kill_at_any_moment_leaves_a_sound_newest_step(tmp_path, delays):
  target = {'params': jax.ShapeDtypeStruct((1000,), jnp.float32)}
  for delay in delays:
    process = subprocess.Popen(
      [sys.executable, '-c', _SAVE_FOR_EVER, tmp_path],
      stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(3):
      last = int(process.stdout.readline())
    time.sleep(delay)
    process.kill()
    process.wait()
    saver = checkpoint.Checkpointer(tmp_path)
    step = saver.latest_step()
    assert step >= last - 1
    assert all(path.name.isdigit() for path in tmp_path.iterdir())
    state, _ = saver.restore(None, target)
    np.testing.assert_array_equal(state['params'], np.full((1000,), step))
