"""A step is either complete or invisible, even if the process is killed."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moe.checkpoint import integrity, listing, save
from tests.checkpoint.states import (
  abstract,
  assert_same,
  make_state,
  save_steps,
)


def test_the_marker_has_the_name_that_orbax_gives_it():
  assert listing.MARKER == ocp.path.atomicity.COMMIT_SUCCESS_FILE


def test_what_a_killed_save_leaves_is_removed_and_never_read(copy):
  (copy / '2').rename(copy / '3.orbax-checkpoint-tmp')
  (copy / '3.orbax-checkpoint-tmp' / integrity.NAME).unlink()
  assert listing.steps(copy) == [1]
  assert save.Checkpointer(copy).latest_step() == 1
  assert [path.name for path in copy.iterdir()] == ['1']


def test_the_hashes_are_there_before_the_step_is_visible(tmp_path, monkeypatch):
  seen = []
  seal = integrity.seal
  monkeypatch.setattr(
    integrity, 'seal', lambda d: (seen.append(listing.steps(tmp_path)), seal(d))
  )
  save_steps(tmp_path, [4])
  assert seen == [[]]
  assert integrity.check(tmp_path / '4') == []


def test_on_an_object_store_the_marker_commits(tmp_path, monkeypatch):
  monkeypatch.setattr(integrity, 'on_object_store', lambda _: True)
  monkeypatch.setattr(integrity, 'seal', seal_before_commit(tmp_path))
  saver = save_steps(tmp_path, [1, 2, 3], keep_last=2, keep_best=0)
  assert listing.steps(tmp_path) == [2, 3]
  assert_same(saver.restore(3, abstract(make_state()))[0], make_state(3))
  (tmp_path / '3' / listing.MARKER).unlink()
  assert listing.steps(tmp_path) == [2]
  assert save.Checkpointer(tmp_path).latest_step() == 2
  assert not (tmp_path / '3').exists()


def seal_before_commit(root):
  """Makes a `seal` that first checks that the step is not committed yet."""
  seal = integrity.seal

  def checked(directory):
    assert directory.parent == root
    assert not (directory / listing.MARKER).exists()
    seal(directory)

  return checked


_SAVE_FOREVER = """
import itertools, sys
import jax.numpy as jnp
from moe.checkpoint import save
saver = save.Checkpointer(sys.argv[1], keep_last=2)
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
      [sys.executable, '-c', _SAVE_FOREVER, tmp_path],
      stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(3):
      last = int(process.stdout.readline())
    time.sleep(delay)
    process.kill()
    process.wait()
    saver = save.Checkpointer(tmp_path)
    step = saver.latest_step()
    assert step >= last - 1
    assert all(path.name.isdigit() for path in tmp_path.iterdir())
    state, _ = saver.restore(None, target)
    np.testing.assert_array_equal(state['params'], np.full((1000,), step))
