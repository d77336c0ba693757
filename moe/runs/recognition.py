"""Recognition of pictures: finds the label that fits best."""

from collections.abc import Sequence

import numpy as np

from moe.evaluate import captions
from moe.infer.pictures import Seen
from moe.runs.picture_model import PictureModel

# Sentences in which {} stands for a label. Their probabilities are averaged.
TEMPLATES = ('{}', '這是{}', '圖中是{}', '一件{}的圖片')


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

  Raises:
    ValueError: if a template has no place for a label, or alpha is out of
      range.
  """
  wrong = [text for text in templates if text.count('{}') != 1]
  if wrong:
    raise ValueError(
      f'A template must have one {{}} for the label, got {wrong[0]!r}.'
    )
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
