"""Assignments within a group against exact solutions and values by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import assignment

M, E = 12, 4

assign = jax.jit(assignment.balanced_assignment)
within_groups = jax.jit(assignment.within_groups, static_argnums=(1, 2))
quantiles = jax.jit(assignment.quantiles, static_argnums=2)
sinkhorn = jax.jit(assignment.sinkhorn, static_argnums=2)
ALL = np.ones((1, M), bool)


def benefits(kind):
  random = np.random.RandomState(0)
  normal = random.randn(1, M, E).astype(np.float32)
  return {
    'random': normal,
    'ties': np.zeros_like(normal),
    'all to one': np.float32(0.01) * normal + np.float32([0, 9, 0, 0]),
    'all alike': np.broadcast_to(normal[:, :1], normal.shape),
    'whole numbers': np.round(2 * normal),
    'large': 1e4 * normal,
  }[kind]


KINDS = ['random', 'ties', 'all to one', 'all alike', 'whole numbers', 'large']


def largest_sum(benefit_ME, places):
  """The largest sum of benefits, by dynamic programming over taken places."""
  best = {(0,) * E: 0.0}
  for row in benefit_ME:
    new = {}
    for taken, total in best.items():
      for e in range(E):
        if taken[e] < places:
          key = taken[:e] + (taken[e] + 1,) + taken[e + 1 :]
          new[key] = max(new.get(key, -np.inf), total + float(row[e]))
    best = new
  return max(best.values())


@pytest.mark.parametrize('num_tokens', [12, 10, 3])
@pytest.mark.parametrize('kind', KINDS)
def test_the_assignment_is_balanced_and_nearly_the_best(kind, num_tokens):
  benefit = benefits(kind)
  valid = np.arange(M)[None] < num_tokens
  expert_M = np.asarray(assign(benefit, valid))[0, :num_tokens]
  places = -(-num_tokens // E)
  assert np.bincount(expert_M, minlength=E).max() <= places
  counted = benefit[0, :num_tokens]
  found = counted[np.arange(num_tokens), expert_M].sum(dtype=np.float64)
  step = max(np.ptp(counted), 1e-6) / 1024
  assert found >= largest_sum(counted, places) - num_tokens * step


def test_the_dynamic_programme_finds_what_trying_everything_finds():
  benefit_ME = benefits('random')[0, :4]
  every = [
    sum(benefit_ME[m, e] for m, e in enumerate(p))
    for p in itertools.permutations(range(E))
  ]
  assert largest_sum(benefit_ME, 1) == pytest.approx(max(every))


def test_groups_are_assigned_independently():
  two = np.concatenate([benefits('random'), benefits('all to one')])
  together = assign(two, np.ones((2, M), bool))
  for g in range(2):
    np.testing.assert_array_equal(assign(two[g : g + 1], ALL)[0], together[g])


def test_tokens_without_a_place_when_bidding_ends_get_a_free_one(monkeypatch):
  monkeypatch.setattr(assignment, 'MAX_ROUNDS', 0)
  expert_GM = jax.jit(lambda b, v: assignment.balanced_assignment(b, v))(
    benefits('random'), ALL
  )
  np.testing.assert_array_equal(expert_GM[0], np.repeat(range(E), M // E))


def test_padding_and_groups_of_padding_alone_are_assigned_nothing():
  valid = np.zeros((1, M), bool)
  np.testing.assert_array_equal(assign(benefits('random'), valid), 0)


def test_forbidden_experts_are_taken_last():
  benefit = benefits('random').copy()
  benefit[0, :3, 1:] = -np.inf  # Three tokens may only use expert 0.
  expert_M = np.asarray(assign(benefit, ALL))[0]
  np.testing.assert_array_equal(expert_M[:3], 0)


def test_a_single_expert_takes_all_tokens():
  np.testing.assert_array_equal(assign(np.ones((1, M, 1), 'f4'), ALL), 0)


def test_many_tokens_need_few_rounds():
  # All 256 tokens prefer one of the last 6 of 16 experts. If bidding ended too
  # early, tokens would get free places in their order, and benefits would be
  # small.
  random = np.random.RandomState(1)
  benefit = random.randn(1, 256, 16).astype(np.float32) + np.linspace(
    0, 8, 16, dtype=np.float32
  )
  expert_M = np.asarray(assign(benefit, np.ones((1, 256), bool)))[0]
  np.testing.assert_array_equal(np.bincount(expert_M, minlength=16), 16)
  chosen = benefit[0, np.arange(256), expert_M]
  filled = benefit[0, np.arange(256), np.repeat(range(16), 16)]
  assert chosen.mean() > filled.mean() + 1


def test_groups_of_experts_count_as_much_as_their_two_best():
  # The groups of experts are (0 1 2), (3 4 5) and (6 7 8). The sums of their
  # two best scores are 5 + 4, 6 + 0 and 4 + 4.
  scores = np.float32([[[5, 4, 0, 6, 0, 0, 4, 4, 4]]])
  found = within_groups(scores, 3, 2)
  expected = scores.copy()
  expected[..., 3:6] = -np.inf
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('groups', [(5, 1), (8, 1), (2, 3)])
def test_groups_that_do_not_fit_are_refused(groups):
  with pytest.raises(ValueError, match='must divide NUM_EXPERTS=8'):
    assignment.within_groups(np.zeros((1, 1, 8), 'f4'), *groups)


def test_a_price_lets_as_many_tokens_in_as_an_expert_has_places():
  # A token chooses one of two experts, so its threshold is the smaller logit.
  # For the four valid tokens, the excess of expert 0 is 4, 3, 2 and 1, and the
  # excess of expert 1 is 0. An even share is 4 * 1 / 2 = 2 tokens, so the price
  # is the third largest excess: 2 for expert 0, and 0 for expert 1.
  logits = np.float32([[[4, 0], [3, 0], [2, 0], [1, 0], [9, 9]]])
  valid = np.array([[True] * 4 + [False]])
  price_GE = quantiles(logits, np.zeros(2, 'f4'), 1, valid)
  np.testing.assert_allclose(price_GE, [[2, 0]])
  # With the prices subtracted, two tokens prefer expert 0, and for one token
  # both experts are equal.
  biased = logits[0, :4] - np.asarray(price_GE[0])
  assert (biased[:, 0] > biased[:, 1]).sum() == 2


def test_a_masked_expert_keeps_its_price():
  logits = np.float32([[[4, 0, -np.inf], [3, 0, -np.inf]]])
  bias = np.float32([0, 0, 0.5])
  price_GE = quantiles(logits, bias, 1, np.ones((1, 2), bool))
  assert np.isfinite(price_GE).all() and price_GE[0, 2] == -0.5


def test_scaled_logits_become_a_balanced_soft_assignment():
  logits = benefits('random')
  valid = np.arange(M)[None] < 8
  soft_ME = np.exp(np.asarray(sinkhorn(logits, valid, 50))[0])
  np.testing.assert_allclose(soft_ME[:8].sum(axis=1), 1, rtol=1e-4)
  np.testing.assert_allclose(soft_ME.sum(axis=0), 2, rtol=1e-4)
  np.testing.assert_array_equal(soft_ME[8:], 0)


def test_scaling_leaves_ratios_of_ratios_alone():
  logits = benefits('random')
  scaled = np.asarray(sinkhorn(logits, ALL, 3))
  cross = lambda a: a[0, 0, 0] - a[0, 0, 1] - a[0, 1, 0] + a[0, 1, 1]
  assert cross(scaled) == pytest.approx(cross(logits), rel=1e-4)


@pytest.mark.parametrize('large', [80.0, 1e4])
def test_large_logits_overflow_nothing(large):
  logits = np.float32(large) * benefits('random')
  assert np.isfinite(sinkhorn(logits, ALL, 8)).all()


def test_no_assignment_carries_a_gradient():
  def total(x):
    prices = assignment.quantiles(x, jnp.zeros(E), 1, ALL)
    return prices.sum() + assignment.sinkhorn(x, ALL, 2).sum()

  gradient = jax.jit(jax.grad(total))(jnp.asarray(benefits('random')))
  np.testing.assert_array_equal(gradient, 0)
