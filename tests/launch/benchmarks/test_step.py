"""Tests the random batches of the benchmark of training steps."""

from launch.benchmarks import step


def test_the_targets_of_a_random_batch_are_its_next_tokens():
  batch = step.random_batch(2, 8, vocab_size=5)
  assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
  assert batch.tokens.max() < 5
  assert batch.loss_weights.sum() == 16
