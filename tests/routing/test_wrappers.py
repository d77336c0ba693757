"""Routers with null and copy experts, or with experts for one modality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import gates
from tests.routing.cases import KEYS, E, choices_of, logits_of, route, routed

P = functools.partial


def test_a_wrapped_router_is_as_causal_as_the_one_that_chooses():
  of = lambda router: gates.ModalityGrouped(1, router=router, reserved=(2,))
  assert not of(gates.ExpertChoice).is_causal
  base = of(gates.Base)
  assert base.is_causal and not base.is_causal_in_training


def test_null_rows_do_not_exist_and_copies_become_the_tokens_own_weight():
  # Experts 0 and 1 compute, expert 2 is a null expert, and experts 3 and 4 are
  # copy experts. Each token has two choices.
  logits = np.log(
    np.float32(
      [[[6, 1, 2, 1, 1], [1, 1, 6, 2, 1], [1, 1, 1, 2, 6], [6, 2, 1, 1, 1]]]
    )
  )
  valid = np.array([[True, True, True, False]])
  router = gates.NullExperts(2, num_null=1, num_copy=2)
  plan = routed(router, logits, valid)
  assert choices_of(plan, 0) == pytest.approx({(0, 0): 0.75})
  np.testing.assert_allclose(plan.own_weight_GM, [[0, 0.25, 1, 0]], rtol=1e-6)
  np.testing.assert_array_equal(plan.statistics['load'][0], [1, 0, 2, 2, 1])


def test_null_experts_lower_the_experts_that_compute():
  router = gates.NullExperts(2, router=gates.Sigmoid, num_null=6, num_copy=2)
  assert router.mean_active(8) == 1.0  # 8 of 16 experts compute: 2 * 8 / 16.
  assert router.num_added == 8
  assert router.init_state(8)['bias_E'].shape == (16,)


def test_without_copies_a_token_has_no_weight_of_its_own():
  router = gates.NullExperts(2, num_null=1)
  plan = jax.eval_shape(P(route, router), np.zeros((1, 2, 4)))
  assert plan.own_weight_GM is None


@pytest.mark.parametrize(
  ('reserved', 'wanted'),
  [
    # Each modality has a mean of its own: 5 rows, and 1 row.
    ((2, 2), [-0.5, 0.5, -0.5, 0.5]),
    # All modalities may use the last two experts. The mean load is 3 rows.
    ((1, 1), [-0.5, -0.5, 0.5, 0.5]),
  ],
)
def test_a_bias_balances_the_experts_of_a_modality(reserved, wanted):
  make = P(gates.Sigmoid, bias_rate=0.5)
  router = gates.ModalityGrouped(2, router=make, reserved=reserved)
  state = {
    'bias_E': np.zeros((1, 4), np.float32),
    'load_E': np.float32([[6, 4, 2, 0]]),
  }
  after = router.update(state)
  np.testing.assert_array_equal(after['bias_E'], [wanted])
  np.testing.assert_array_equal(after['load_E'], np.zeros((1, 4)))
  slow = gates.ModalityGrouped(2, router=gates.Quantile, reserved=(2, 2))
  assert slow.update(slow.init_state(4))['tokens'].shape == ()


def test_a_bias_does_not_open_an_expert_of_another_modality():
  router = gates.ModalityGrouped(2, router=gates.Sigmoid, reserved=(2, 2))
  state = {
    'bias_E': np.float32([9, 9, 0, 0]),
    'load_E': np.zeros(4, np.float32),
  }
  modality = np.array([[0, 1, 2]], np.int32)
  plan = routed(router, np.zeros((1, 3, 4)), None, state, modality=modality)
  chosen = set(choices_of(plan, 0))
  # The third modality is not listed, so it may use all experts.
  assert chosen == {(0, 0), (0, 1), (1, 2), (1, 3), (2, 0), (2, 1)}


def test_choices_of_closed_experts_are_counted_as_dropped():
  # Experts 0 to 3 are reserved for modality 0, experts 4 to 7 for modality 1.
  # All 12 tokens have modality 0; the last one is padding.
  modality = np.zeros((1, 12), np.int32)
  logits = logits_of('random', E)[:1]
  dropped = lambda make, **options: float(
    routed(
      gates.ModalityGrouped(router=make, reserved=(4, 4), **options),
      logits,
      np.arange(12)[None] < 11,
      {'bias_E': np.zeros(E, np.float32), 'load_E': np.zeros(E, np.float32)},
      modality=modality,
      token_ids=np.zeros((1, 12), np.int32),
    ).dropped
  )
  # An expert takes at most ceil(11 / 8) = 2 of 11 tokens, so the 4 open experts
  # take 8 tokens.
  assert dropped(gates.Base, num_active=1) == 11 - 8
  # All 11 valid tokens have id 0, so the hash gives them experts 0 and 8 // 2 =
  # 4. Expert 4 is closed, so 11 choices are dropped.
  assert dropped(gates.Hash, num_active=2) == 11
  # The other routers choose by masked logits, and enough experts are open.
  grouped = P(gates.Sigmoid, num_groups=4, top_groups=1)
  assert dropped(grouped, num_active=2) == 0
  assert dropped(gates.TopK, num_active=2) == 0
  assert dropped(gates.ExpertChoice, num_active=2) == 0


def test_open_groups_without_enough_allowed_experts_count_what_they_miss():
  # The groups of experts are (0, 1) and (2, 3). Expert 0 is reserved for
  # modality 0, experts 1 and 2 for modality 1. Expert 3 is open to all. So a
  # token of modality 0 may use one expert of each group.
  router = gates.ModalityGrouped(
    2, router=P(gates.Sigmoid, num_groups=2, top_groups=1), reserved=(1, 2)
  )
  state = router.init_state(4)
  logits = np.zeros((1, 1, 4))
  plan = routed(router, logits, None, state)
  assert float(plan.dropped) == 1
  assert len(choices_of(plan, 0)) == 1


def test_a_wrapper_delegates_to_its_inner_router():
  inner = P(gates.Switch, jitter=0.5)
  router = gates.ModalityGrouped(1, router=inner, reserved=(2, 2))
  x = np.ones((1, 3, 4), np.float32)
  assert router.jitter == 0.5
  perturb = jax.jit(router.perturb)
  assert float(jnp.abs(perturb(x, KEYS[:1]) - 1).max()) > 0.1
