"""Scores of a model that draws, describes and recognises pictures."""

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from moe.data import pictures as pictures_lib
from moe.data.store import Store
from moe.evaluate import (
  caption_scores,
  captions,
  picture_sets,
)
from moe.evaluate import labels as labels_lib
from moe.evaluate.judge import Judge
from moe.evaluate.score import Score
from moe.infer.pictures import Seen
from moe.runs import (
  drawing_scores,
  picture_judge,
  picture_losses,
  recognition,
)
from moe.runs.held_out_pictures import (
  RIVALS,
  Agreement,
  HeldOut,
  Mean,
  Request,
  check_held_out,
  held_out,
)
from moe.runs.picture_model import PictureModel

_logger = logging.getLogger(__name__)

# Recognition is scored only if pictures have at most this many different names.
_MAX_LABELS = 50
# Values of `alpha` in `captions.information_gain`.
ALPHAS = (0.0, 0.5, 1.0)
SHOWN = 12


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


def names_of(model: PictureModel) -> list[str]:
  """Names of the picture sources of a run's evaluation tasks.

  The task `draw_NAME_PIXELS` has the pictures of the source NAME.

  Raises:
    ValueError: if no evaluation task has such a name.
  """
  end = f'_{model.tokenizer.pixels}'
  tasks = model.trained.run.data.evaluation
  names = [
    task.removeprefix('draw_').removesuffix(end)
    for task in tasks
    if task.startswith('draw_') and task.endswith(end)
  ]
  if not names:
    raise ValueError(
      '--pictures must name the pictures to score, since no name in EVAL_TASKS'
      f' {tuple(tasks)} is draw_NAME{end}: add the flag.'
    )
  return names


def score_sources(
  model: PictureModel,
  pictures: Mapping[str, Mapping[str, str]],
  wanted: Request,
  cache_dir: str = '',
) -> dict[str, Found]:
  """Scores all held-out splits of all picture sources.

  Args:
    model: the model.
    pictures: name of the source -> split -> directory of a store.
    wanted: what is scored.
    cache_dir: directory of the judges; '' for none.

  Returns:
    label -> result. The label is 'SOURCE' for the validation split and
    'SOURCE SPLIT' for other splits.

  Raises:
    ValueError: if a source has no held-out picture.
  """
  check_held_out(pictures)
  found, pixels = {}, model.tokenizer.pixels
  for name, by_split in pictures.items():
    store = Store(by_split['train'])
    known = held_out(name, store, pixels, int(store.lengths.size))
    judge = picture_judge.judge_of(
      by_split, known, wanted.judge_epochs, cache_dir
    )
    for label, directory in pictures_lib.held_out(name, by_split).items():
      mine = held_out(label, Store(directory), pixels, wanted.limit)
      found[label] = score(model, mine, known, judge, wanted)
      _logger.info(f'{label}: {len(mine.pixels)} pictures scored')
  return found


def score(
  model: PictureModel,
  pictures: HeldOut,
  training: HeldOut,
  judge: Judge | None,
  wanted: Request,
) -> Found:
  """Scores the held-out pictures of one source.

  Args:
    model: the model.
    pictures: the held-out pictures, at least two.
    training: the pictures that the model was trained on.
    judge: a network that was trained without the model. None if pictures have
      no attribute that it could learn; then no drawn picture is judged.
    wanted: what is scored.
  """
  mean = Mean(pictures.name, wanted.command)
  codes = model.encode(pictures.pixels)
  known = drawing_scores.drawable(model, pictures)
  first, others = drawing_scores.to_draw(known, wanted)
  drawing = drawing_scores.with_guidance(model, others, judge, wanted)
  drawn = model.draw(first.captions, drawing) if first.captions else []
  made = [one.pixels for one in drawn]
  seen = model.see(pictures.pixels)
  written = model.write(seen)
  near, number = picture_sets.nearest(pictures.pixels, training.pixels)
  borrowed = [training.captions[i] for i in number]
  scores = []
  if made:
    scores += [
      mean.single('guidance', drawing.guidance, len(made), '', True),
      drawing_scores.copied(mean, np.stack(made), training, near),
    ]
  if made and judge:
    back = model.tokenizer.decode(codes)
    scores += drawing_scores.judged(
      mean, pictures, back, known, first, np.stack(made), judge
    )
  scores += [
    *_described(mean, pictures, written, wanted.agreement),
    *_overlap(mean, _references(pictures), written, borrowed),
    *_alignment(mean, model, pictures, seen, codes, wanted.agreement),
    *_recognised(mean, model, pictures, seen),
  ]
  shown = zip(pictures.pixels, pictures.captions, written, strict=True)
  return Found(
    scores,
    list(zip(first.captions, made, strict=True))[:SHOWN],
    list(shown)[:SHOWN],
  )


def _references(pictures: HeldOut) -> list[list[str]]:
  """The right sentences about each picture.

  If a picture has tags, each tag in place of the name gives one more sentence.
  """
  return [
    [text, *(text.replace(one['name'], tag) for tag in one.get('tags', ()))]
    for text, one in zip(pictures.captions, pictures.facts, strict=True)
  ]


def _overlap(
  mean: Mean,
  references: list[list[str]],
  written: list[str],
  borrowed: list[str],
) -> list[Score]:
  """BLEU and CIDEr-D of the model's captions, and of borrowed captions.

  A borrowed caption is the caption of the nearest training picture.
  """
  scores = []
  sources = (
    ('captions', written),
    ('captions of the nearest training picture', borrowed),
  )
  for what, texts in sources:
    counts = caption_scores.bleu_counts(texts, references)
    scores.append(
      mean.of_rows(
        f'{what}, BLEU of characters',
        lambda rows, counts=counts: caption_scores.bleu(counts[rows]),
        (len(texts),),
        '',
        True,
      )
    )
    cider = caption_scores.cider_d(texts, references)
    scores.append(mean(f'{what}, CIDEr-D', cider, ''))
  return scores


def _described(
  mean: Mean, pictures: HeldOut, written: list[str], agreement: Agreement
) -> list[Score]:
  """Share of right captions, by attribute; for 'all', also by kind of scene."""
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
  # The result of `agreement` may have no entry 'all'. The value is then NaN.
  exact = np.array([float(one.get('all', np.nan)) for one in right])
  return scores + mean.by_kind('caption right, all', exact, pictures.facts)


def _alignment(
  mean: Mean,
  model: PictureModel,
  pictures: HeldOut,
  seen: Seen,
  codes: np.ndarray,
  agreement: Agreement,
) -> list[Score]:
  """Scores of how well the model connects sentences with pictures."""
  with_it, without = (
    picture_losses.code_nats(model, codes, pictures.captions, is_hidden)
    for is_hidden in (False, True)
  )
  unit = 'nats per code'
  scores = [
    mean('loss of codes with their sentence', with_it, unit, higher=False),
    mean('loss of codes without a sentence', without, unit, higher=False),
    mean('what the sentence saves', without - with_it, unit),
  ]
  count = len(codes) // RIVALS * RIVALS
  if not count:
    return scores
  losses = np.zeros((count, RIVALS))
  for first in range(0, count, RIVALS):
    part = slice(first, first + RIVALS)
    ids = [model.caption(text) for text in pictures.captions[part]]
    sizes = np.array([len(i) for i in ids])
    losses[part] = model.nats(seen.rows(part), ids) / sizes
  # A rival that is also true of the picture is no mistake. It may have the same
  # name in another form of sentence.
  is_true = _is_true(pictures.part(0, count), agreement)
  rows, own = np.arange(count), np.arange(count) % RIVALS
  following = (own + 1) % RIVALS
  true, other = losses[rows, own], losses[rows, following]
  false = np.where(is_true, np.inf, losses)
  is_known = np.isfinite(false.min(axis=1))
  best = false.min(axis=1) >= true - 1e-6
  shares = {
    'caption loss of the true sentence below that of another': np.where(
      is_true[rows, following], np.nan, true < other
    ),
    f'sentence found among {RIVALS}': np.where(is_known, best, np.nan),
  }
  return [
    *(mean(*one) for one in shares.items() if not np.isnan(one[1]).all()),
    *scores,
  ]


def _is_true(pictures: HeldOut, agreement: Agreement) -> np.ndarray:
  """Whether the rivals of each picture's sentence are true, [N, RIVALS].

  Pictures and sentences come in parts of `RIVALS`; the sentences of a part are
  the rivals of each other. A sentence is always true of its own picture.
  """
  texts, found = pictures.captions, []
  for row, facts in enumerate(pictures.facts):
    first = row // RIVALS * RIVALS
    found.append(
      [
        text == texts[row] or bool(agreement(text, facts).get('all'))
        for text in texts[first : first + RIVALS]
      ]
    )
  return np.array(found)


def _recognised(
  mean: Mean, model: PictureModel, pictures: HeldOut, seen: Seen
) -> list[Score]:
  """Scores of recognising the names of pictures.

  The result is [] if a name is missing, if all names are equal, or if there are
  more than `_MAX_LABELS` different names.
  """
  names = [one.get('name', '') for one in pictures.facts]
  labels = sorted({*names})
  if not 1 < len(labels) <= _MAX_LABELS or not all(labels):
    return []
  templates = recognition.TEMPLATES
  given, without = recognition.label_nats(model, seen, labels, templates)
  truth = np.array([labels.index(name) for name in names])
  scores = []
  for alpha in ALPHAS:
    gains = captions.information_gain(given, without, alpha)
    right = gains.argmax(axis=1) == truth
    scores.append(mean(f'recognised, alpha {alpha:g}', right))
  gains = captions.information_gain(given, without, ALPHAS[1])
  answers = gains.argmax(axis=1)
  for what, value_of, known, higher in (
    ('macro-F1', labels_lib.macro_f1, answers, True),
    ('calibration error', labels_lib.calibration_error, gains, False),
  ):
    of_rows = lambda rows, f=value_of, x=known: f(x[rows], truth[rows])
    scores.append(mean.of_rows(what, of_rows, (len(truth),), 'share', higher))
  for number, template in enumerate(templates):
    one = captions.information_gain(
      given[..., number : number + 1], without[..., number : number + 1], 0.5
    )
    right = one.argmax(axis=1) == truth
    scores.append(mean(f'recognised by {template}', right))
  return scores
