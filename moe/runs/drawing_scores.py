"""Scores of drawn pictures, by an independent network that judges them."""

import dataclasses
import logging

import numpy as np

from moe.evaluate import picture_sets
from moe.evaluate.judge import Judge
from moe.evaluate.score import Score
from moe.runs import picture_judge
from moe.runs.drawing import Drawing
from moe.runs.held_out_pictures import HeldOut, Mean, Request
from moe.runs.picture_model import PictureModel

_logger = logging.getLogger(__name__)

# Largest number of sentences on which the guidance is chosen.
_TRIED = 100


def drawable(model: PictureModel, pictures: HeldOut) -> HeldOut:
  """The pictures that have a sentence which the model can draw, shuffled.

  A sentence with an unknown character, for example, cannot be drawn. Some
  sources have one kind of picture after the other, and only some pictures are
  drawn. The random order gives each kind its share.
  """
  rows = [i for i, text in enumerate(pictures.captions) if model.can_draw(text)]
  if len(rows) < len(pictures.captions):
    _logger.info(
      f'{pictures.name}: {len(pictures.captions) - len(rows)} sentences are'
      ' left out, since the model cannot draw them'
    )
  return pictures.of_rows(np.random.default_rng(0).permutation(rows).tolist())


def to_draw(known: HeldOut, wanted: Request) -> tuple[HeldOut, HeldOut]:
  """(pictures with a sentence to draw, others on which guidance is chosen).

  The others have at most `_TRIED` pictures, and at most a third of all.

  Args:
    known: pictures from `drawable`.
    wanted: what is scored.
  """
  count = len(known.captions)
  tried = min(_TRIED, count // 3) if len(wanted.guidances) > 1 else 0
  num = min(wanted.num_drawn, count - tried)
  return known.part(0, num), known.part(num, num + tried)


def with_guidance(
  model: PictureModel, others: HeldOut, judge: Judge | None, wanted: Request
) -> Drawing:
  """How pictures are drawn, with the guidance that is best for `others`.

  Args:
    model: the model.
    others: pictures that are not scored; see `to_draw`.
    judge: it says which guidance is best. None keeps the guidance.
    wanted: what is scored.
  """
  if judge is None or not others.captions:
    return wanted.drawing
  found = {}
  for guidance in wanted.guidances:
    drawing = dataclasses.replace(wanted.drawing, guidance=guidance)
    made = model.draw(others.captions, drawing)
    right, _ = picture_judge.right_and_features(
      judge, np.stack([one.pixels for one in made]), others.facts
    )
    # A weak model rarely gets a whole picture right. So guidances are compared
    # by the mean over the attributes.
    parts = [np.nanmean(v) for v in right.values() if not np.isnan(v).all()]
    found[guidance] = float(np.mean(parts))
    _logger.info(
      f'{others.name}: guidance {guidance:g} on {len(others.captions)}'
      f' sentences: {found[guidance]:.3f}'
    )
  best = max(found, key=found.get)
  return dataclasses.replace(wanted.drawing, guidance=best)


def judged(
  mean: Mean,
  pictures: HeldOut,
  reconstructed: np.ndarray,
  known: HeldOut,
  wanted: HeldOut,
  drawn: np.ndarray,
  judge: Judge,
) -> list[Score]:
  """Scores by the judge's answers and features.

  Args:
    mean: makes the scores.
    pictures: the held-out pictures.
    reconstructed: the same pictures, decoded from their codes.
    known: pictures from `drawable`. Drawn pictures are compared with these,
      since the others are of kinds that may never be drawn.
    wanted: the pictures whose sentences were drawn.
    drawn: what was drawn for these sentences.
    judge: a network that was trained without the model.

  Returns:
    Scores of real, of reconstructed and of drawn pictures, for each attribute
    and each kind of scene; then the distances between drawn and real pictures.
    The scores of real and reconstructed pictures are upper bounds.
  """
  _, real = picture_judge.right_and_features(judge, known.pixels, known.facts)
  right, features = picture_judge.right_and_features(judge, drawn, wanted.facts)
  what = 'drawn pictures judged'
  return [
    *picture_judge.ceilings(mean, judge, pictures, reconstructed),
    *picture_judge.by_attribute(mean, what, right, wanted.facts),
    *picture_sets.scores(features, real, pictures.name, mean.command),
  ]


def copied(
  mean: Mean, pixels: np.ndarray, training: HeldOut, near: np.ndarray
) -> Score:
  """Share of suspicious drawn pictures, see `picture_sets.is_nearer`."""
  ours, _ = picture_sets.nearest(pixels, training.pixels)
  return mean(
    'drawn pictures nearer to a training picture than 95% of held-out ones',
    picture_sets.is_nearer(ours, near),
    higher=False,
  )
