"""Recognition of pictures: finds the label that fits best."""

from collections.abc import Sequence

import numpy as np

from moe.evaluate import captions
from moe.infer.pictures import Seen
from moe.runs.picture_model import PictureModel

# Sentences with a label; their probabilities are averaged.
TEMPLATES = ('{}', '這是{}', '圖中是{}', '一件{}的圖片')


def labels_of(text: str) -> list[str]:
  """The labels in a list with commas.

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
  """Information gain [N, labels] of labels by pictures.

  Args:
    model: reads the pictures.
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
  """Nats [N, labels, templates] with pictures, and [L, M] without a picture."""
  sentences = [t.replace('{}', label) for label in labels for t in templates]
  ids = [model.caption(sentence) for sentence in sentences]
  shape = len(labels), len(templates)
  with_picture = model.nats(seen, ids).reshape(-1, *shape)
  return with_picture, model.nats(None, ids).reshape(shape)


def ranked(
  gains_NL: np.ndarray, labels: Sequence[str]
) -> list[list[tuple[str, float]]]:
  """For each picture, (label, gain) from the largest gain to the smallest."""
  return [
    [(labels[i], float(gains_L[i])) for i in np.argsort(-gains_L)]
    for gains_L in gains_NL
  ]
