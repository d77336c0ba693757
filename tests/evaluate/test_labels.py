import numpy as np
import pytest

from moe.evaluate import labels


def test_macro_f1_by_hand():
  # Label 0 is chosen 3 times and is the truth 2 times, and both agree 2 times.
  # So its F1 is 2 * 2 / (3 + 2). Label 1 is chosen once and is the truth 2
  # times, and both agree once. So its F1 is 2 * 1 / (1 + 2).
  found = labels.macro_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
  assert found == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_the_calibration_error_by_hand():
  # Three answers have the confidence 0.75, and two of them are right. One
  # answer has 0.95 and is right. So the error is 3 / 4 |0.75 - 2 / 3| +
  # 1 / 4 |0.95 - 1|.
  probs = np.array([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.05, 0.95]])
  found = labels.calibration_error(np.log(probs), np.array([0, 1, 1, 1]))
  assert found == pytest.approx((0.75 * 3 - 2 + 0.05) / 4)
