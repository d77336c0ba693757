"""Scores of chosen labels besides their accuracy: F1 and calibration error."""

import numpy as np


def macro_f1(answers: np.ndarray, truth: np.ndarray) -> float:
  """The mean over labels of the harmonic mean of precision and recall.

  Args:
    answers: int [N], the label that was chosen.
    truth: int [N], the right label. A label that is never right does not count.
  """
  found = []
  for label in np.unique(truth):
    hits = np.sum((answers == label) & (truth == label))
    found.append(2 * hits / (np.sum(answers == label) + np.sum(truth == label)))
  return float(np.mean(found))


def calibration_error(
  gains: np.ndarray, truth: np.ndarray, num_bins: int = 10
) -> float:
  """The expected calibration error: how far confidence and accuracy differ.

  Guo et al. (2017), https://arxiv.org/abs/1706.04599. Answers are put into bins
  by their confidence. The error is the mean over bins of |mean confidence -
  accuracy|, weighted by the number of answers in the bin. The confidence of an
  answer is its probability, which is a softmax over the gains.

  Args:
    gains: [N, labels], log-probabilities up to a constant for each row.
    truth: int [N], the right label.
    num_bins: bins of equal width from 0 to 1.
  """
  probs = np.exp(gains - gains.max(axis=1, keepdims=True))
  probs /= probs.sum(axis=1, keepdims=True)
  confidence, right = probs.max(axis=1), probs.argmax(axis=1) == truth
  bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
  error = 0.0
  for number in np.unique(bins):
    mine = bins == number
    error += mine.mean() * abs(confidence[mine].mean() - right[mine].mean())
  return float(error)
