"""`listing` says which steps exist, which are kept, and which is the best."""

import json
import threading

import numpy as np
import pytest

from moe.checkpoint import integrity, listing, save
from tests.checkpoint.states import META, make_state, save_steps


def test_the_last_and_the_best_steps_stay(tmp_path):
  scores = {1: 9.0, 2: 5.0, 3: 7.0, 4: 6.0, 5: 8.0}
  save_steps(tmp_path, [1, 2, 3, 4, 5], scores, keep_last=2, keep_best=1)
  assert listing.steps(tmp_path) == [2, 4, 5]
  assert listing.best_step(tmp_path) == 2
  assert len(list(tmp_path.iterdir())) == 3


def test_a_step_without_a_metric_or_with_nan_is_never_the_best(tmp_path):
  saver = save_steps(tmp_path, [1, 2], {1: float('nan'), 2: 5.0}, keep_last=5)
  saver.save(3, make_state(3), META)
  saver.close()
  assert listing.best_step(tmp_path) == 2
  assert listing.ranking(tmp_path) == [2]


def test_a_step_that_is_scored_after_its_commit_is_ranked_and_sound(tmp_path):
  saver = save_steps(tmp_path, [1, 2], {1: 6.0, 2: 7.0}, keep_last=5)
  saver.save(3, make_state(3), META)
  saver.close()
  listing.add_metrics(tmp_path / '3', {'bits_per_char': 5.0})
  assert listing.ranking(tmp_path) == [3, 1, 2]
  assert not integrity.check(tmp_path / '3')


def test_a_directory_without_checkpoints_is_named(tmp_path):
  with pytest.raises(ValueError, match='got one without any'):
    listing.locate(tmp_path)


def test_metadata_is_plain_json(copy):
  meta = json.loads((copy / '2' / 'meta' / 'metadata').read_text())
  assert meta == listing.read_meta(copy / '2')


def test_only_steps_that_were_scored_on_the_same_data_are_ranked(tmp_path):
  saver = save.Checkpointer(tmp_path, keep_last=9, best_metric='bits_per_char')
  for step, score, data in (
    (1, 1.0, None),  # A step of an earlier version.
    (2, 0.5, 'old'),
    (3, 2.0, 'new'),
    (4, 3.0, 'new'),
  ):
    meta = META if data is None else {**META, 'ranked_on': data}
    saver.save(step, make_state(step), meta, {'bits_per_char': score})
  saver.save(5, make_state(5), {**META, 'ranked_on': 'newest'})
  saver.close()
  # Step 5 has no score. The newest step with a score is 4, so its data count.
  assert listing.ranking(tmp_path) == [1, 3, 4]
  listing.add_metrics(tmp_path / '5', {'bits_per_char': 9.0}, 'newest')
  assert listing.ranking(tmp_path) == [1, 5]
  assert listing.read_meta(tmp_path / '5')['metrics'] == {'bits_per_char': 9.0}


def test_a_host_that_does_not_see_a_new_step_yet_waits_for_it(
  copy, monkeypatch
):
  # Process 0 sees the steps 1 and 2. This process sees step 2 after a second.
  (copy / '2').rename(copy / 'hidden')
  answers = iter([np.array(2), np.array([1, 2])])
  monkeypatch.setattr(listing.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    listing.multihost_utils, 'broadcast_one_to_all', lambda _: next(answers)
  )
  timer = threading.Timer(1.0, lambda: (copy / 'hidden').rename(copy / '2'))
  timer.start()
  assert listing.shared_steps(copy) == [1, 2]
  assert (copy / '2').is_dir()


def test_process_0_chooses_the_best_and_the_newest_step(tmp_path, monkeypatch):
  save_steps(tmp_path, [1, 2], {1: 9.0, 2: 5.0})
  monkeypatch.setattr(listing.jax, 'process_count', lambda: 2)
  for process, expected in ((0, (2, 2)), (1, (None, None))):
    monkeypatch.setattr(listing.jax, 'process_index', lambda p=process: p)
    # The answer of this process takes the place of process 0's answer.
    monkeypatch.setattr(
      listing.multihost_utils, 'broadcast_one_to_all', lambda own: own
    )
    best = listing.shared_best_step(tmp_path)
    assert (best, listing.shared_newest_step(tmp_path)) == expected
