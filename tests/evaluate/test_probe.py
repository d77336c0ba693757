"""Networks that read labels out of features."""

import numpy as np

from moe.evaluate import probe


def test_a_probe_learns_what_no_linear_map_can():
  features = np.random.default_rng(0).normal(size=(4096, 6)) * 50 + 100
  signs = features[:, :2] > 100
  labels = (signs[:, 0] ^ signs[:, 1]).astype(int)
  trained = probe.train(features[:3072], labels[:3072], 2)
  right = trained.labels(features[3072:]) == labels[3072:]
  assert right.mean() > 0.9
