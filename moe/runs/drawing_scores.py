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
  """How pictures are drawn, with the best guidance for other sentences."""
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
  model: PictureModel,
  pictures: HeldOut,
  codes: np.ndarray,
  judge: Judge,
) -> list[Score]:
  """Two upper bounds: the judge's scores of real and of decoded pictures."""
  scores = []
  made = model.tokenizer.decode(codes)
  for what, pixels in (('real', pictures.pixels), ('reconstructed', made)):
    answers, _ = judge_lib.judge(judge, pixels)
    right = judge_lib.right(judge, answers, pictures.facts)
    scores.append(mean(f'{what} pictures judged, all attributes', right['all']))
  return scores


def drawn(
  mean: Mean, wanted: HeldOut, pixels: np.ndarray, judge: Judge
) -> list[Score]:
  """The judge's scores of drawn pictures, by attribute and by kind of scene."""
  answers, features = judge_lib.judge(judge, pixels)
  right = judge_lib.right(judge, answers, wanted.facts)
  scores = [
    mean(f'drawn pictures judged, {name}', values)
    for name, values in right.items()
    if not np.isnan(values).all()
  ]
  kinds = [one.get('kind') for one in wanted.facts]
  for kind in sorted({kind for kind in kinds if kind}):
    mine = np.array([one == kind for one in kinds])
    scores.append(
      mean(f'drawn pictures judged, all of kind {kind}', right['all'][mine])
    )
  return scores


def distances(
  mean: Mean, pixels: np.ndarray, pictures: HeldOut, judge: Judge
) -> list[Score]:
  """Distances between drawn and real pictures in the judge's features."""
  ours, real = (
    judge_lib.judge(judge, some)[1] for some in (pixels, pictures.pixels)
  )
  return picture_sets.scores(ours, real, pictures.name, mean.command)


def copied(
  mean: Mean, pixels: np.ndarray, training: HeldOut, near: np.ndarray
) -> Score:
  """Share of drawn pictures that repeat a training picture, see `is_nearer`."""
  ours, _ = picture_sets.nearest(pixels, training.pixels)
  return mean(
    'drawn pictures nearer to a training picture than 95% of held-out ones',
    picture_sets.is_nearer(ours, near),
    higher=False,
  )
