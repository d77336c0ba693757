"""The independent network that judges pictures, and scores by its answers."""

from collections.abc import Mapping

import numpy as np

from moe.data.pictures import JUDGE
from moe.data.store import Store
from moe.evaluate import judge as judge_lib
from moe.evaluate.judge import Judge
from moe.evaluate.score import Score
from moe.runs.held_out_pictures import HeldOut, Mean, held_out

# A judge is trained for at least this many steps for each value of the
# attribute with most values. So it learns 200 characters from few pictures.
_STEPS_OF_VALUE = 15


def judge_of(
  by_split: Mapping[str, str], training: HeldOut, epochs: int, cache_dir: str
) -> Judge | None:
  """The network that judges drawn pictures; it is trained apart from the model.

  Args:
    by_split: split -> directory of a store. If there is a split for the judge,
      the judge is trained on this split, and sees none of the pictures on which
      the model is trained.
    training: the pictures of the training split.
    epochs: least number of passes over the pictures; a small set gets more.
    cache_dir: directory of the caches; '' for none.

  Returns:
    The judge, or None if the pictures have no attribute that it could learn,
    such as those of a user's folder.
  """
  store = Store(by_split.get(JUDGE, by_split['train']))
  if JUDGE in by_split:
    size = training.pixels.shape[1]
    training = held_out(training.name, store, size, int(store.lengths.size))
  values = judge_lib.attributes_of(training.facts)
  if not values:
    return None
  shown = min(judge_lib.BATCH, len(training.facts))
  steps = _STEPS_OF_VALUE * max(map(len, values.values()))
  least = -(-steps // (len(training.facts) // shown))
  args = training.pixels, training.facts, max(epochs, least)
  if not cache_dir:
    return judge_lib.train(*args)
  content = store.manifest['content_sha256']
  return judge_lib.of_cache(cache_dir, content, *args)


def right_and_features(
  judge: Judge, pixels: np.ndarray, facts: list[dict]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """(attribute -> whether the judge is right about each picture, features)."""
  answers, features = judge_lib.judge(judge, pixels)
  return judge_lib.right(judge, answers, facts), features


def by_attribute(
  mean: Mean, what: str, right: Mapping[str, np.ndarray], facts: list[dict]
) -> list[Score]:
  """Scores of each attribute over all pictures, and over each kind of scene."""
  scores = []
  for name, values in right.items():
    if not np.isnan(values).all():
      scores.append(mean(f'{what}, {name}', values))
      scores += mean.by_kind(f'{what}, {name}', values, facts)
  return scores


def ceilings(
  mean: Mean, judge: Judge, pictures: HeldOut, reconstructed: np.ndarray
) -> list[Score]:
  """Scores of real pictures and of reconstructed ones.

  Drawn pictures can hardly reach more.

  Args:
    mean: makes the scores.
    judge: the judge.
    pictures: held-out pictures.
    reconstructed: the same pictures, decoded from their codes.
  """
  scores = []
  for what, pixels in (
    ('real', pictures.pixels),
    ('reconstructed', reconstructed),
  ):
    right, _ = right_and_features(judge, pixels, pictures.facts)
    what = f'{what} pictures judged'
    scores += by_attribute(mean, what, right, pictures.facts)
  return scores
