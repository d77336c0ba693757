"""A step with a far larger gradient than before changes no parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.train import spikes
from tests.train.toy import make_toy_program

judge = jax.jit(spikes.judge, static_argnums=2)


def judged(values, deviations=6.0):
  """(whether each gradient norm is a spike, the statistics after all norms)."""
  norms, found = spikes.start(), []
  for value in values:
    is_spike, _, norms = judge(norms, jnp.float32(value), deviations)
    found.append(bool(is_spike))
  return found, norms


@pytest.fixture(scope='module')
def usual():
  return 1 + 0.1 * np.random.RandomState(0).randn(spikes.WINDOW + 50)


def test_usual_norms_are_no_spikes(usual):
  found, norms = judged(usual)
  assert not any(found)
  assert float(norms.mean) == pytest.approx(1, abs=0.05)
  assert float(norms.variance) == pytest.approx(0.01, rel=0.3)


def test_the_first_norms_have_equal_weights():
  # Mean and variance of 1, 2 and 6 are 3 and (4 + 1 + 9) / 3.
  _, norms = judged([1, 2, 6])
  assert float(norms.mean) == pytest.approx(3)
  assert float(norms.variance) == pytest.approx(14 / 3)


def test_a_spike_is_found_and_hides_no_later_one(usual):
  found, _ = judged([*usual, 1000, *usual[:5], 1000])
  assert [i - len(usual) for i, spike in enumerate(found) if spike] == [0, 6]


def test_norms_that_stay_large_are_soon_the_usual_ones(usual):
  found, _ = judged([*usual, *3 * usual])
  assert 1 <= sum(found) < 30 and not any(found[-spikes.WINDOW :])


def test_no_step_is_a_spike_before_the_statistics_are_known():
  assert not any(judged([1.0] * (spikes.WINDOW - 1) + [1e6])[0])


def test_a_norm_that_is_not_finite_leaves_the_statistics_alone(usual):
  _, before = judged(usual)
  for value in (np.nan, np.inf):
    is_spike, _, after = judge(before, jnp.float32(value), 6.0)
    assert not is_spike and after == before


@pytest.fixture(scope='module')
def program(toy):
  return make_toy_program(toy, spike_deviations=6.0)


def test_a_spike_changes_only_the_step_and_the_statistics(program, make_batch):
  known = spikes.Norms(*map(jnp.float32, (500.0, 1e-3, 1e-9)))
  before = program.init()._replace(norms=known)
  kept = jax.tree.map(np.asarray, before)
  after, metrics = program.train_step(before, program.put(make_batch(0)))
  assert metrics['spike'][0] == 1 and metrics['skipped'][0] == 0
  assert int(after.step) == 1 and float(after.norms.count) == 501
  same = after._replace(step=kept.step, norms=kept.norms)
  jax.tree.map(np.testing.assert_array_equal, same, kept)


def test_a_run_without_the_rule_has_no_statistics(toy):
  plain = make_toy_program(toy)
  assert plain.abstract._fields == ('step', 'params', 'opt_state', 'state')
