"""A run goes back to an earlier checkpoint."""

import json
import shutil

import jax.numpy as jnp
import pytest

from moe.checkpoint import listing, save
from moe.data import skips
from moe.runs import rewind


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run with checkpoints of steps 5, 10 and 15, which left out batch 2."""
  run = tmp_path_factory.mktemp('run')
  saver = save.Checkpointer(run / 'checkpoints', keep_last=9)
  for step in (5, 10, 15):
    params = {'w': jnp.full((4,), float(step))}
    saver.save(step, {'params': params}, {'skipped_batches': [[2, 3]]})
  saver.close()
  return run


@pytest.fixture
def run(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


def test_newer_steps_are_moved_aside_and_batches_are_left_out(run):
  rewind.rewind(str(run), 5, (7, 10))
  assert listing.steps(run / 'checkpoints') == [5]
  assert (run / 'checkpoints/10.rewound/state').is_dir()
  # Steps count from 1 and batches from 0. Step 7 has read batch 7, since batch
  # 2 was left out.
  assert skips.read(run).ranges == ((2, 3), (7, 10))


def test_a_rewind_that_was_interrupted_can_be_repeated(run):
  rewind.rewind(str(run), 10, (12, 14))
  (run / 'checkpoints/15.rewound').rename(run / 'checkpoints/15')
  # The run must not go on from step 15, because the steps before it have read
  # batches that are now left out.
  recorded = listing.read_meta(run / 'checkpoints/15')['skipped_batches']
  with pytest.raises(ValueError, match='for the 15 steps so far'):
    skips.check_resumed(skips.read(run), recorded, 15, str(run))
  rewind.rewind(str(run), 10, (12, 14))
  assert listing.steps(run / 'checkpoints') == [5, 10]
  assert skips.read(run).ranges == ((2, 3), (12, 14))


def test_a_second_rewind_keeps_the_skips_of_the_first(run):
  rewind.rewind(str(run), 10, (12, 14))
  rewind.rewind(str(run), 10, (16, 18))
  assert skips.read(run).ranges == ((2, 3), (12, 14), (16, 18))


def test_a_rewind_after_a_crash_without_a_new_checkpoint_numbers_by_the_log(
  run,
):
  rewind.rewind(str(run), 10, (12, 14))
  skips.record_use(run, skips.read(run))  # The run goes on, and crashes.
  rewind.rewind(str(run), 10, (16, 18))
  # Steps count from 1, and batches 2, 12 and 13 are left out. So step 16
  # has read batch 15 + 3.
  assert skips.read(run).ranges == ((2, 3), (12, 14), (18, 20))


def test_without_skips_only_the_steps_are_moved(run):
  rewind.rewind(str(run), 10, None)
  assert listing.steps(run / 'checkpoints') == [5, 10]
  assert not (run / skips.NAME).exists()


@pytest.mark.parametrize(
  ('step', 'skipped', 'fragment'),
  [
    (7, None, r'--to=7 must be one of \[5, 10, 15\]'),
    (10, (10, 12), '10 < FIRST < END'),
    (10, (12, 12), '10 < FIRST < END'),
  ],
)
def test_a_rewind_that_makes_no_sense_is_refused(run, step, skipped, fragment):
  with pytest.raises(ValueError, match=fragment):
    rewind.rewind(str(run), step, skipped)
  assert listing.steps(run / 'checkpoints') == [5, 10, 15]


def test_a_damaged_step_is_refused(run):
  (run / 'checkpoints/10/meta/metadata').unlink()
  with pytest.raises(ValueError, match='--to=10 must be sound'):
    rewind.rewind(str(run), 10, None)


def test_a_run_that_still_trains_is_refused(run):
  owner = {'machine': 'another', 'host': 'h', 'process': 1}
  path = run / 'running.json'
  path.write_text(json.dumps(owner))
  with (
    pytest.MonkeyPatch.context() as patch,
    pytest.raises(ValueError, match='one run at a time'),
  ):
    # The other host writes its file again while we watch.
    patch.setattr(
      'moe.runs.lock.time.sleep',
      lambda _: path.write_text(json.dumps({**owner, 'beat': 1})),
    )
    rewind.rewind(str(run), 5, None)
