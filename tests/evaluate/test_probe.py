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


def test_a_probe_finds_the_layer_and_the_neighbour_that_tell_the_label():
  features = np.random.default_rng(0).normal(size=(2049, 3, 4)) * 5 + 9
  labels = (features[1:, 1, 0] > 9).astype(int)  # The label of the row before.
  around = np.stack([np.full(2048, -1), np.arange(1, 2049)], axis=1)
  trained = probe.train(features, labels[:1536], 2, around[:1536])
  found = trained.labels(features, around[1536:])
  assert (found == labels[1536:]).mean() > 0.9
  assert trained.params[-1].argmax() == 1
