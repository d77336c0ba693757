import numpy as np
import pytest

from moe.scale import drops


def simulated(tokens, A, E, slots, held, variation, trials, seed=0):
  """Simulates the share of dropped rows, with random loads of experts."""
  rng = np.random.default_rng(seed)
  dropped = 0
  for _ in range(trials):
    load = np.full(E, 1 / E)
    if variation:
      load = rng.dirichlet(np.full(E, ((E - 1) / variation**2 - 1) / E))
    # Systematic sampling draws A distinct experts, each with probability A
    # times its load.
    order = rng.permuted(np.tile(np.arange(E), (tokens, 1)), axis=1)
    ends = np.cumsum(A * load[order], axis=1)
    marks = rng.random((tokens, 1, 1)) + np.arange(A)[:, None]
    place = (ends[:, None] <= marks).sum(axis=2).clip(max=E - 1)
    chosen = np.take_along_axis(order, place, axis=1)
    counts = np.bincount(chosen.ravel(), minlength=E).reshape(-1, held).sum(1)
    dropped += np.maximum(counts - slots, 0).sum()
  return dropped / (trials * tokens * A)


def test_two_tokens_that_choose_one_of_two_experts_by_hand():
  # With probability 0.5 both tokens choose the same expert, and then 1 of 2
  # rows is dropped: 0.5 * 1 / 2 = 0.25.
  assert drops.expected_share(2, 1, 2, slots=1) == pytest.approx(0.25)


def test_nothing_is_dropped_where_every_token_has_a_slot():
  assert drops.expected_share(64, 2, 8, slots=64, variation=0.3) < 1e-12


@pytest.mark.parametrize('variation', [0.0, 0.3])
@pytest.mark.parametrize('A, E, slots', [(1, 8, 40), (2, 16, 40), (2, 64, 10)])
def test_capacity_per_group_drops_as_much_as_a_simulation(
  A, E, slots, variation
):
  got = drops.expected_share(256, A, E, slots, 1, variation)
  want = simulated(256, A, E, slots, 1, variation, trials=400)
  assert got == pytest.approx(want, rel=0.05, abs=0.0015)


@pytest.mark.parametrize('variation', [0.0, 0.3])
def test_a_pooled_buffer_drops_as_much_as_a_simulation(variation):
  slots = drops.pooled_slots(512, 2, parts=8, factor=1.05)
  got = drops.expected_share(512, 2, 32, slots, held=4, variation=variation)
  want = simulated(512, 2, 32, slots, 4, variation, trials=400)
  assert got == pytest.approx(want, rel=0.05, abs=0.0015)


def test_pooling_over_a_device_drops_less_than_a_capacity_for_each_expert():
  apart = drops.expected_share(1024, 2, 64, slots=40, variation=0.3)
  pooled = drops.expected_share(1024, 2, 64, 40 * 8, held=8, variation=0.3)
  assert pooled < 0.5 * apart


def test_more_active_experts_than_experts_are_refused():
  with pytest.raises(ValueError, match='num_active=9 <= num_experts=8'):
    drops.expected_share(16, 9, 8, slots=4)
