"""Recognition of pictures: finds the label that fits best."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.evaluate import captions
from moe.infer.pictures import Seen
from moe.runs.picture_model import PictureModel

# Sentences in which {} stands for a label. Their probabilities are averaged.
TEMPLATES = ('{}', '這是{}', '圖中是{}', '一件{}的圖片')
ALPHA = 0.5


def labels_of(text: str) -> list[str]:
  """Splits a text at its commas into labels.

  Raises:
    ValueError: if a label is empty or occurs twice, or if there is only one.
  """
  labels = [label.strip() for label in text.replace('，', ',').split(',')]
  if len(labels) < 2 or not all(labels) or len({*labels}) < len(labels):
    raise ValueError(
      '--labels must be at least two different labels with commas between'
      f' them, got {text!r}.'
    )
  return labels


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question about pictures: which of these labels fits best?

  Attributes:
    labels: at least two different texts.
    templates: sentences with {} for a label; () for those of `TEMPLATES` whose
      characters the model knows.
    alpha: see `captions.information_gain`.
  """

  labels: Sequence[str]
  templates: Sequence[str]
  alpha: float

  def __post_init__(self):
    captions.check_alpha(self.alpha)
    wrong = [text for text in self.templates if text.count('{}') != 1]
    if wrong:
      raise ValueError(
        f'A template must have one {{}} for the label, got {wrong[0]!r}.'
      )


def asked(
  labels: str | None,
  templates: Sequence[str] | None = None,
  alpha: float | None = None,
) -> Asked | None:
  """What the flags of a user ask for; None if there are no labels.

  Args:
    labels: the labels with commas between them.
    templates: see `Asked`; None is the same as ().
    alpha: see `captions.information_gain`; None for 0.5.

  Raises:
    ValueError: if a value cannot be used, or if there are templates or an alpha
      without labels.
  """
  if labels:
    alpha = ALPHA if alpha is None else alpha
    return Asked(labels_of(labels), templates or (), alpha)
  if templates or alpha is not None:
    raise ValueError(
      '--template and --alpha need --labels, got none: add labels such as'
      ' --labels=T恤,褲子, or leave the two flags out.'
    )
  return None


def answers(
  model: PictureModel, seen: Seen, asked: Asked
) -> list[list[tuple[str, float]]]:
  """For each picture, a list of (label, gain); the largest gain is first.

  Raises:
    ValueError: if a sentence has characters that the model does not know.
  """
  for text in (*asked.labels, *asked.templates):
    model.check_known(text.replace('{}', ''), 'A label or template')
  templates = asked.templates or [
    text for text in TEMPLATES if not model.unknown(text.replace('{}', ''))
  ]
  found = gains(model, seen, asked.labels, templates, asked.alpha)
  return ranked(found, asked.labels)


def gains(
  model: PictureModel,
  seen: Seen,
  labels: Sequence[str],
  templates: Sequence[str],
  alpha: float,
) -> np.ndarray:
  """Information that each picture gives about each label, [N, labels].

  Args:
    model: the model that reads the pictures.
    seen: the pictures.
    labels: at least one.
    templates: sentences with {} for a label.
    alpha: see `captions.information_gain`.
  """
  with_picture, without = label_nats(model, seen, labels, templates)
  return captions.information_gain(with_picture, without, alpha)


def label_nats(
  model: PictureModel,
  seen: Seen,
  labels: Sequence[str],
  templates: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns nats of the sentences, with each picture and without a picture.

  The shapes are [N, labels, templates] and [labels, templates].
  """
  sentences = [t.replace('{}', label) for label in labels for t in templates]
  ids = [model.caption(sentence) for sentence in sentences]
  shape = len(labels), len(templates)
  with_picture = model.nats(seen, ids).reshape(-1, *shape)
  return with_picture, model.nats(None, ids).reshape(shape)


def ranked(
  gains_NL: np.ndarray, labels: Sequence[str]
) -> list[list[tuple[str, float]]]:
  """For each picture, a list of (label, gain); the largest gain is first."""
  return [
    [(labels[i], float(gains_L[i])) for i in np.argsort(-gains_L)]
    for gains_L in gains_NL
  ]
