"""Scores of a model that draws, describes and recognises pictures."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping

import numpy as np

from moe import bounds
from moe.data.store import Store
from moe.evaluate import (
  caption_scores,
  captions,
  comparison,
  picture_sets,
)
from moe.evaluate import judge as judge_lib
from moe.evaluate import labels as labels_lib
from moe.evaluate.judge import Judge
from moe.evaluate.score import Score
from moe.runs import picture_losses, recognition
from moe.runs.picture_model import Drawing, PictureModel
from moe.runs.tokenizer_report import first_pictures

_logger = logging.getLogger(__name__)

# A picture's own sentence must be found among this many, itself included.
_RIVALS = 16
# Recognition is scored only if pictures have at most this many different names.
_MAX_LABELS = 50
# Values of `alpha` in `captions.information_gain`.
ALPHAS = (0.0, 0.5, 1.0)
SHOWN = 12

# (sentence, facts of a picture) -> attribute -> whether the sentence is right.
Agreement = Callable[[str, Mapping], Mapping[str, bool]]


@dataclasses.dataclass(frozen=True)
class Request:
  """What is scored, and how.

  Attributes:
    agreement: says which attributes a sentence gets right.
    drawing: how pictures are drawn.
    num_drawn: number of sentences to draw, the first ones of each source.
    limit: number of held-out pictures to read, the first ones of each source.
    judge_epochs: how often the judge sees each picture in its training. The
      judge is a network that is trained apart from the models.
    command: the command that gives the same numbers again.
  """

  agreement: Agreement
  drawing: Drawing = Drawing()
  num_drawn: int = 200
  limit: int = 1500
  judge_epochs: int = 4
  command: str = ''

  def __post_init__(self):
    bounds.at_least(2, '--num', self.num_drawn, 'sentences to draw')
    bounds.at_least(_RIVALS, '--limit', self.limit, 'held-out pictures')
    meaning = 'passes of the judge over its pictures'
    bounds.at_least(1, '--judge_epochs', self.judge_epochs, meaning)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Held-out pictures with their sentences and facts.

  Attributes:
    name: name of the pictures; the name of each score begins with it.
    pixels: uint8 [N, Y, X, 3].
    captions: the sentence of each picture.
    facts: what each picture shows, by attribute.
  """

  name: str
  pixels: np.ndarray
  captions: list[str]
  facts: list[dict]

  def first(self, count: int) -> 'HeldOut':
    """The first `count` pictures."""
    return HeldOut(
      self.name,
      self.pixels[:count],
      self.captions[:count],
      self.facts[:count],
    )


@dataclasses.dataclass(frozen=True)
class Found:
  """The scores of a model on held-out pictures, with examples for a page.

  Attributes:
    scores: all scores.
    drawn: (sentence, pixels) of the first `SHOWN` drawn pictures.
    described: (pixels, true sentence, the model's sentence) of the first
      `SHOWN` held-out pictures.
  """

  scores: list[Score]
  drawn: list[tuple[str, np.ndarray]]
  described: list[tuple[np.ndarray, str, str]]


def held_out(name: str, store: Store, pixels: int, limit: int) -> HeldOut:
  """Reads the first `limit` pictures of a store, with sentences and facts."""
  made = first_pictures(store, pixels, limit)
  records = store.read(np.arange(len(made)))
  facts = [json.loads(record['facts'].tobytes()) for record in records]
  return HeldOut(name, made, [one.pop('caption') for one in facts], facts)


def score_sources(
  model: PictureModel,
  pictures: Mapping[str, Mapping[str, str]],
  wanted: Request,
) -> dict[str, Found]:
  """Scores all held-out splits of all picture sources.

  Args:
    model: the model.
    pictures: name of the source -> split -> directory of a store.
    wanted: what is scored.

  Returns:
    label -> result. The label is 'SOURCE' for the validation split and
    'SOURCE SPLIT' for other splits.
  """
  found, pixels = {}, model.tokenizer.pixels
  for name, by_split in pictures.items():
    store = Store(by_split['train'])
    known = held_out(name, store, pixels, int(store.lengths.size))
    judge = judge_lib.train(known.pixels, known.facts, wanted.judge_epochs)
    for split, directory in by_split.items():
      if split != 'train':
        label = name if split == 'validation' else f'{name} {split}'
        mine = held_out(label, Store(directory), pixels, wanted.limit)
        found[label] = score(model, mine, known, judge, wanted)
        _logger.info(f'{label}: {len(mine.pixels)} pictures scored')
  return found


def score(
  model: PictureModel,
  pictures: HeldOut,
  training: HeldOut,
  judge: Judge,
  wanted: Request,
) -> Found:
  """Scores the held-out pictures of one source.

  Args:
    model: the model.
    pictures: the held-out pictures, at least two.
    training: the pictures that the model was trained on.
    judge: a network that was trained without the model.
    wanted: what is scored.
  """
  mean = _Mean(pictures.name, wanted.command)
  codes = model.encode(pictures.pixels)
  first = pictures.first(wanted.num_drawn)
  drawn = model.draw(first.captions, wanted.drawing)
  written = model.write(codes)
  pixels = np.stack([one.pixels for one in drawn])
  near, number = picture_sets.nearest(pictures.pixels, training.pixels)
  borrowed = [training.captions[i] for i in number]
  scores = [
    *_judged(mean, model, pictures, codes, judge),
    *_drawn(mean, first, pixels, judge),
    *_distances(mean, pixels, pictures, judge),
    _copied(mean, pixels, training, near),
    *_described(mean, pictures, written, wanted.agreement),
    *_overlap(mean, pictures.captions, written, borrowed),
    *_alignment(mean, model, pictures, codes),
    *_recognised(mean, model, pictures, codes),
  ]
  made = [one.pixels for one in drawn]
  shown = zip(pictures.pixels, pictures.captions, written, strict=True)
  return Found(
    scores,
    list(zip(first.captions, made, strict=True))[:SHOWN],
    list(shown)[:SHOWN],
  )


class _Mean:
  """Makes scores that are means over pictures."""

  def __init__(self, name: str, command: str):
    self._name, self.command = name, command

  def __call__(
    self, what: str, values: np.ndarray, unit: str = 'share', higher=True
  ) -> Score:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return comparison.of_mean(
      f'{self._name}: {what}', known, self.command, unit, higher
    )

  def single(
    self, what: str, value: float, n: int, unit: str, higher: bool
  ) -> Score:
    """Makes a score without an interval, for a value that is not a mean."""
    name = f'{self._name}: {what}'
    return Score(name, float(value), None, None, n, self.command, unit, higher)


def _judged(
  mean: _Mean,
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


def _drawn(
  mean: _Mean, wanted: HeldOut, pixels: np.ndarray, judge: Judge
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


def _distances(
  mean: _Mean, pixels: np.ndarray, pictures: HeldOut, judge: Judge
) -> list[Score]:
  """Distances between drawn and real pictures in the judge's features."""
  drawn, real = (
    judge_lib.judge(judge, some)[1] for some in (pixels, pictures.pixels)
  )
  return picture_sets.scores(drawn, real, pictures.name, mean.command)


def _copied(
  mean: _Mean, pixels: np.ndarray, training: HeldOut, near: np.ndarray
) -> Score:
  """Share of drawn pictures that may be copies; see `is_nearer`."""
  drawn, _ = picture_sets.nearest(pixels, training.pixels)
  return mean(
    'drawn pictures nearer to a training picture than 95% of held-out ones',
    picture_sets.is_nearer(drawn, near),
    higher=False,
  )


def _overlap(
  mean: _Mean, wanted: list[str], written: list[str], borrowed: list[str]
) -> list[Score]:
  """BLEU and CIDEr-D of the model's captions, and of borrowed captions.

  A borrowed caption is the caption of the nearest training picture.
  """
  scores, references = [], [[text] for text in wanted]
  sources = (
    ('captions', written),
    ('captions of the nearest training picture', borrowed),
  )
  for what, texts in sources:
    bleu = caption_scores.bleu(texts, references)
    scores.append(
      mean.single(f'{what}, BLEU of characters', bleu, len(texts), '', True)
    )
    cider = caption_scores.cider_d(texts, references)
    scores.append(mean(f'{what}, CIDEr-D', cider, ''))
  return scores


def _described(
  mean: _Mean, pictures: HeldOut, written: list[str], agreement: Agreement
) -> list[Score]:
  """Share of the model's captions that are right, by attribute and kind."""
  right = [
    agreement(text, facts)
    for text, facts in zip(written, pictures.facts, strict=True)
  ]
  names = list(dict.fromkeys(name for one in right for name in one))
  scores = [
    mean(
      f'caption right, {name}',
      np.array([float(one.get(name, np.nan)) for one in right]),
    )
    for name in names
  ]
  kinds = [one.get('kind') for one in pictures.facts]
  for kind in sorted({kind for kind in kinds if kind}):
    exact = [
      float(one['all'])
      for one, its_kind in zip(right, kinds, strict=True)
      if its_kind == kind
    ]
    scores.append(mean(f'caption right, all of kind {kind}', np.array(exact)))
  return scores


def _alignment(
  mean: _Mean, model: PictureModel, pictures: HeldOut, codes: np.ndarray
) -> list[Score]:
  """Scores of how well the model connects sentences with pictures."""
  count = len(codes) // _RIVALS * _RIVALS
  losses = np.zeros((count, _RIVALS))
  for first in range(0, count, _RIVALS):
    part = slice(first, first + _RIVALS)
    ids = [model.caption(text) for text in pictures.captions[part]]
    sizes = np.array([len(i) for i in ids])
    losses[part] = model.nats(codes[part], ids) / sizes
  own = np.arange(count) % _RIVALS
  true = losses[np.arange(count), own]
  other = losses[np.arange(count), (own + 1) % _RIVALS]
  # If a rival has the same sentence, choosing the rival is not a mistake.
  best = losses.min(axis=1) >= true - 1e-6
  with_it, without = (
    picture_losses.code_nats(model, codes, pictures.captions, is_hidden)
    for is_hidden in (False, True)
  )
  unit = 'nats per code'
  return [
    mean(
      'caption loss of the true sentence below that of another', true < other
    ),
    mean(f'sentence found among {_RIVALS}', best),
    mean('loss of codes with their sentence', with_it, unit, higher=False),
    mean('loss of codes without a sentence', without, unit, higher=False),
    mean('what the sentence saves', without - with_it, unit),
  ]


def _recognised(
  mean: _Mean, model: PictureModel, pictures: HeldOut, codes: np.ndarray
) -> list[Score]:
  """Scores of recognising the names of pictures.

  The result is [] if a name is missing, if all names are equal, or if there are
  more than `_MAX_LABELS` names.
  """
  names = [one.get('name', '') for one in pictures.facts]
  labels = sorted({*names})
  if not 1 < len(labels) <= _MAX_LABELS or not all(labels):
    return []
  templates = recognition.TEMPLATES
  given, without = recognition.label_nats(model, codes, labels, templates)
  truth = np.array([labels.index(name) for name in names])
  scores = []
  for alpha in ALPHAS:
    gains = captions.information_gain(given, without, alpha)
    right = gains.argmax(axis=1) == truth
    scores.append(mean(f'recognised, alpha {alpha:g}', right))
  gains = captions.information_gain(given, without, ALPHAS[1])
  answers = gains.argmax(axis=1)
  count = len(truth)
  f1 = labels_lib.macro_f1(answers, truth)
  scores.append(mean.single('macro-F1', f1, count, 'share', True))
  error = labels_lib.calibration_error(gains, truth)
  scores.append(mean.single('calibration error', error, count, 'share', False))
  for number, template in enumerate(templates):
    one = captions.information_gain(
      given[..., number : number + 1], without[..., number : number + 1], 0.5
    )
    right = one.argmax(axis=1) == truth
    scores.append(mean(f'recognised by {template}', right))
  return scores
