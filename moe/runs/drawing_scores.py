"""Scores of drawn pictures, by an independent network that judges them."""

import dataclasses
import logging

import numpy as np

from moe.data.store import Store
from moe.evaluate import judge as judge_lib
from moe.evaluate import picture_sets
from moe.evaluate.judge import Judge
from moe.evaluate.score import Score
from moe.runs.drawing import Drawing
from moe.runs.held_out_pictures import HeldOut, Mean, Request
from moe.runs.picture_model import PictureModel

_logger = logging.getLogger(__name__)

# Number of sentences on which the guidance is chosen.
_TRIED = 100


def judge_of(store: Store, training: HeldOut, wanted: Request) -> Judge:
  """The independent network of a source of pictures."""
  args = training.pixels, training.facts, wanted.judge_epochs
  if not wanted.cache_dir:
    return judge_lib.train(*args)
  content = store.manifest['content_sha256']
  return judge_lib.of_cache(wanted.cache_dir, content, *args)


def with_guidance(
  model: PictureModel, pictures: HeldOut, judge: Judge, wanted: Request
) -> Drawing:
  """How to draw, with the best guidance on sentences that are not scored."""
  first = wanted.num_drawn
  others = pictures.part(first, first + _TRIED)
  if len(wanted.guidances) < 2 or not others.captions:
    return wanted.drawing
  found = {}
  for guidance in wanted.guidances:
    drawing = dataclasses.replace(wanted.drawing, guidance=guidance)
    made = model.draw(others.captions, drawing)
    answers, _ = judge_lib.judge(judge, np.stack([one.pixels for one in made]))
    right = judge_lib.right(judge, answers, others.facts)
    # A weak model gets whole pictures right too seldom to tell guidances apart.
    parts = [np.nanmean(v) for v in right.values() if not np.isnan(v).all()]
    found[guidance] = float(np.mean(parts))
    _logger.info(
      f'{pictures.name}: guidance {guidance:g}: {found[guidance]:.3f}'
    )
  best = max(found, key=found.get)
  return dataclasses.replace(wanted.drawing, guidance=best)


def judged(
  mean: Mean,
  pictures: HeldOut,
  reconstructed: np.ndarray,
  wanted: HeldOut,
  drawn: np.ndarray,
  judge: Judge,
) -> list[Score]:
  """Scores by the judge's answers and features.

  Args:
    mean: makes the scores.
    pictures: the held-out pictures.
    reconstructed: the same pictures, decoded from their codes.
    wanted: the pictures whose sentences were drawn.
    drawn: what was drawn for these sentences.
    judge: a network that was trained without the model.

  Returns:
    Two upper bounds, which are the scores of real and of reconstructed
    pictures; the scores of drawn pictures, by attribute and by kind of scene;
    the distances between drawn and real pictures.
  """

  def right_and_features(
    pixels: np.ndarray, facts: list[dict]
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    answers, features = judge_lib.judge(judge, pixels)
    return judge_lib.right(judge, answers, facts), features

  real, real_features = right_and_features(pictures.pixels, pictures.facts)
  made, _ = right_and_features(reconstructed, pictures.facts)
  right, features = right_and_features(drawn, wanted.facts)
  what = 'drawn pictures judged'
  return [
    mean('real pictures judged, all attributes', real['all']),
    mean('reconstructed pictures judged, all attributes', made['all']),
    *(
      mean(f'{what}, {name}', values)
      for name, values in right.items()
      if not np.isnan(values).all()
    ),
    *mean.by_kind(f'{what}, all', right['all'], wanted.facts),
    *picture_sets.scores(features, real_features, pictures.name, mean.command),
  ]


def copied(
  mean: Mean, pixels: np.ndarray, training: HeldOut, near: np.ndarray
) -> Score:
  """Share of drawn pictures that are suspicious, see `is_nearer`."""
  ours, _ = picture_sets.nearest(pixels, training.pixels)
  return mean(
    'drawn pictures nearer to a training picture than 95% of held-out ones',
    picture_sets.is_nearer(ours, near),
    higher=False,
  )
