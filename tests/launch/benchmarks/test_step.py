"""The training step that is timed."""

from launch.benchmarks import step


def test_a_random_batch_asks_for_the_next_token():
  batch = step.random_batch(2, 8, vocab_size=5)
  assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
  assert batch.tokens.max() < 5
  assert batch.loss_weights.sum() == 16
