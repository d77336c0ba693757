"""Sorting finds the same slots as a loop; slots are summed by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import dispatch, slots
from moe.routing.plan import RoutingPlan
from moe.routing.token_choice import rows_of_choices
from tests.routing import oracle

G, M, A, E = 2, 12, 3, 4
CHOICES = {
  'random': lambda r: r.rand(G, M, E).argsort(-1)[..., :A],
  'all to one': lambda r: np.broadcast_to(np.arange(A), (G, M, A)),
  'first alike': lambda r: np.concatenate(
    [np.zeros((G, M, 1), int), 1 + r.rand(G, M, E - 1).argsort(-1)[..., 1:]], -1
  ),
}
VALID_GM = np.arange(M) < np.array([[M - 3], [M]])


def make_plan(choices, num_spare=0):
  random = np.random.RandomState(2)
  expert_GMA = jnp.asarray(CHOICES[choices](random), jnp.int32)
  # There are only four different weights, so many rows have equal weights.
  weight_GMA = jnp.asarray(random.randint(1, 5, (G, M, A)) / 4, jnp.float32)
  rows = rows_of_choices(expert_GMA, weight_GMA, jnp.asarray(VALID_GM))
  return RoutingPlan(*rows, {}, {}, num_spare)


def assign(plan, num_experts, C, priority):
  """Returns (slot of each row, row of each slot) from `dispatch.Sorted`."""
  x_GMD = jnp.zeros((*plan.rows_GMA.shape[:2], 1), jnp.float32)
  sort = dispatch.Sorted(priority=priority)
  permuted = jax.jit(lambda: sort.permute(x_GMD, plan, num_experts, C))()
  groups = len(x_GMD)
  slot_GR = np.zeros_like(plan.token_GR)
  rows_GR = np.asarray(plan.rows_GMA).reshape(groups, -1)
  slots_GR = np.asarray(permuted.slot_GMA).reshape(groups, -1)
  np.put_along_axis(slot_GR, rows_GR, slots_GR, axis=1)
  return slot_GR, np.asarray(permuted.row_GU)


@functools.cache
def assigned(choices, C, priority, num_spare):
  plan = make_plan(choices, num_spare)
  return plan, *assign(plan, E, C, priority)


CASES = [
  pytest.param(
    choices, C, priority, spare, id=f'{choices}-{C}-{priority}-{spare}'
  )
  for choices in CHOICES
  for C in (1, 5)
  for priority, spare in (
    ('position', 0),
    ('probability', 0),
    ('position', 1),
    ('probability', 2),
  )
]


@pytest.mark.parametrize('choices, C, priority, num_spare', CASES)
def test_the_rows_kept_are_those_of_a_loop(choices, C, priority, num_spare):
  plan, slot_GR, _ = assigned(choices, C, priority, num_spare)
  kept_GR = oracle.kept_rows(plan, E, C, priority)
  np.testing.assert_array_equal(slot_GR >= 0, kept_GR)


@pytest.mark.parametrize('choices, C, priority, num_spare', CASES)
def test_every_slot_holds_one_row_of_its_expert(
  choices, C, priority, num_spare
):
  plan, slot_GR, row_GU = assigned(choices, C, priority, num_spare)
  for g in range(G):
    kept = np.flatnonzero(slot_GR[g] >= 0)
    np.testing.assert_array_equal(row_GU[g, slot_GR[g, kept]], kept)
    np.testing.assert_array_equal(
      slot_GR[g, kept] // C, np.asarray(plan.expert_GR)[g, kept]
    )
    assert np.sum(row_GU[g] >= 0) == len(kept)


def test_spilled_rows_serve_tokens_that_a_full_expert_turned_away():
  # All four tokens choose expert 0, with expert 1 as spare choice. Each expert
  # has two slots.
  expert_GMA = jnp.tile(jnp.array([0, 1], jnp.int32), (1, 4, 1))
  rows = rows_of_choices(
    expert_GMA, jnp.ones((1, 4, 2), jnp.float32), jnp.ones((1, 4), bool)
  )
  plan = RoutingPlan(*rows, {}, {}, num_spare=1)
  slot_GR, row_GU = assign(plan, 2, 2, 'position')
  # Rows 0 to 3 are the first choices of tokens 0 to 3. Rows 4 to 7 are their
  # spare choices.
  np.testing.assert_array_equal(slot_GR, [[0, 1, -1, -1, -1, -1, 2, 3]])
  np.testing.assert_array_equal(row_GU, [[0, 1, 6, 7]])


def test_keys_too_large_for_one_number_are_sorted_as_pairs(monkeypatch):
  plan = make_plan('random')
  sort = lambda: slots.sort_by_expert(plan, plan.valid_GR, E)
  one_number = jax.jit(lambda: sort())()
  monkeypatch.setattr(slots, 'INT32_LIMIT', (E + 1) * A * M)
  pairs = jax.jit(sort)()
  jax.tree.map(np.testing.assert_array_equal, pairs, one_number)
  key_GR = np.where(plan.valid_GR, plan.expert_GR, E)
  np.testing.assert_array_equal(
    pairs[1], np.argsort(key_GR, axis=1, kind='stable')
  )


# Up to 16 choices are added in one pass; more choices need several passes.
@pytest.mark.parametrize('A', [1, 3, 16, 17, 40])
@pytest.mark.parametrize('at_once', [False, True])
def test_tokens_are_the_sums_of_their_slots(at_once, A):
  G, M, U, D = 2, 5, 30, 3
  random = np.random.RandomState(0)
  out_GUD = random.randn(G, U, D).astype('f4')
  slot_GMA = random.randint(-1, U, (G, M, A)).astype('i4')
  slot_GMA[0, 0] = -1
  expected = np.zeros((G, M, D))
  for place in np.ndindex(G, M, A):
    if slot_GMA[place] >= 0:
      expected[place[:2]] += out_GUD[place[0], slot_GMA[place]]
  run = functools.partial(slots.sum_of_slots, at_once=at_once)
  found = jax.jit(run)(out_GUD, slot_GMA)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
