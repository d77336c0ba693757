"""Routers: choices, weights and error messages."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import gates
from tests.routing import reference_plans as reference
from tests.routing.cases import (
  BIAS,
  BIASED,
  CASES,
  INPUTS,
  KEYS,
  VALID,
  E,
  G,
  M,
  choices_of,
  logits_of,
  route,
  routed,
)

P = functools.partial
# Logits of one token with the probabilities 1/8, 2/8 and 5/8.
LOGITS = np.log([[[1.0, 2.0, 5.0]]])


def test_the_two_best_experts_are_taken_and_their_weights_sum_to_one():
  plan = routed(gates.TopK(2), LOGITS)
  np.testing.assert_array_equal(plan.expert_GR, [[2, 1]])
  # The weights are 5/8 and 2/8, divided by their sum 7/8.
  np.testing.assert_allclose(plan.weight_GR, [[5 / 7, 2 / 7]], rtol=1e-6)


def test_without_renormalising_the_weights_are_the_probabilities():
  plan = routed(gates.TopK(2, renormalize=False), LOGITS)
  np.testing.assert_allclose(plan.weight_GR, [[5 / 8, 2 / 8]], rtol=1e-6)


def test_switch_takes_one_expert_with_its_probability():
  plan = routed(gates.Switch(), LOGITS)
  np.testing.assert_array_equal(plan.expert_GR, [[2]])
  np.testing.assert_allclose(plan.weight_GR, [[5 / 8]], rtol=1e-6)


@pytest.mark.parametrize(
  'router', [gates.Switch(), gates.TopK(1, renormalize=False)]
)
def test_the_gradient_of_one_choice_reaches_the_router(router):
  # The gradient of p_2 with respect to the logits is p_2 ((0, 0, 1) - p). For p
  # = (1/8, 2/8, 5/8) it is 5/8 * (-1/8, -2/8, 3/8) = (-5, -10, 15) / 64.
  weight = lambda logits: route(router, logits).weight_GR.sum()
  gradient = jax.jit(jax.grad(weight))(jnp.asarray(LOGITS, jnp.float32))
  np.testing.assert_allclose(
    gradient, [[[-5 / 64, -10 / 64, 15 / 64]]], rtol=1e-5
  )


@pytest.mark.parametrize(
  'make',
  [
    functools.partial(gates.TopK, 1),
    functools.partial(gates.TopK, num_active=1, renormalize=True),
  ],
)
def test_one_renormalised_choice_is_refused(make):
  with pytest.raises(ValueError, match='renormalize=False'):
    make()


def test_more_choices_than_experts_are_refused():
  with pytest.raises(ValueError, match='TOP_K=4.* at most NUM_EXPERTS=3'):
    jax.eval_shape(P(route, gates.TopK(4)), LOGITS)


def test_switch_with_two_choices_is_refused():
  with pytest.raises(ValueError, match='TOP_K=2'):
    gates.Switch(2)


def test_of_equal_experts_the_first_are_taken():
  plan = routed(gates.TopK(2), np.zeros((2, 3, 4)))
  # Rows list the first choices of all tokens, then the second choices.
  np.testing.assert_array_equal(plan.expert_GR, [[0] * 3 + [1] * 3] * 2)


def test_padding_has_no_valid_row_and_does_not_move_the_others():
  logits = np.random.RandomState(0).randn(1, 4, 4)
  other = logits.copy()
  other[0, 2] = 100.0
  valid = np.array([[True, True, False, True]])
  plan, same = (routed(gates.TopK(2), a, valid) for a in (logits, other))
  token_R = np.asarray(plan.token_GR[0])
  np.testing.assert_array_equal(plan.valid_GR[0], token_R != 2)
  for name in plan.losses:
    assert float(plan.losses[name][1]) == 3
    np.testing.assert_array_equal(plan.losses[name], same.losses[name])
  for name in plan.statistics:
    jax.tree.map(
      np.testing.assert_array_equal,
      plan.statistics[name],
      same.statistics[name],
    )


def test_renaming_the_experts_renames_the_choices():
  logits = np.random.RandomState(1).randn(2, 4, 8)
  order = np.random.RandomState(2).permutation(8)
  plan = routed(gates.TopK(2), logits)
  renamed = routed(gates.TopK(2), logits[..., order])
  np.testing.assert_array_equal(order[renamed.expert_GR], plan.expert_GR)
  np.testing.assert_allclose(renamed.weight_GR, plan.weight_GR, rtol=1e-6)


def test_a_plan_has_k_rows_per_token():
  plan = jax.eval_shape(
    lambda logits: route(gates.TopK(2), logits),
    jax.ShapeDtypeStruct((3, 4, 8), jnp.float32),
  )
  rows = ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR')
  dtypes = (jnp.int32, jnp.int32, jnp.float32, jnp.bool_)
  for name, dtype in zip(rows, dtypes, strict=True):
    assert getattr(plan, name) == jax.ShapeDtypeStruct((3, 8), dtype), name
  assert plan.rows_GMA == jax.ShapeDtypeStruct((3, 4, 2), jnp.int32)
  names = {'load_balance', 'router_z', 'local_entropy', 'global_entropy'}
  assert set(plan.losses) == names


@pytest.mark.parametrize('kind', ['random', 'ties', 'all to one'])
@pytest.mark.parametrize('name', CASES)
def test_choices_and_weights_are_those_of_plain_python(name, kind):
  router, state, expected = CASES[name]
  if (name, kind) == ('sinkhorn', 'ties'):
    pytest.skip('rounding decides between equal scaled logits')
  logits = logits_of(kind, E + router.num_added)
  plan = routed(router, logits, VALID, state, **INPUTS)
  for g in range(G):
    wanted = expected(g, logits[g].tolist(), VALID[g].tolist())
    assert choices_of(plan, g) == pytest.approx(wanted, rel=2e-5), g


@pytest.mark.parametrize('name', CASES)
def test_rows_of_tokens_and_load_agree_with_the_rows(name):
  router, state, _ = CASES[name]
  logits = logits_of('random', E + router.num_added)
  plan = routed(router, logits, VALID, state, **INPUTS)
  rows_GMA = np.asarray(plan.rows_GMA)
  for g in range(G):
    named = {}
    for m, a in np.argwhere(rows_GMA[g] >= 0):
      named.setdefault(rows_GMA[g, m, a], []).append(m)
    # `rows_GMA` names each valid row once, among the rows of its own token.
    for r in np.flatnonzero(plan.valid_GR[g]):
      assert named[r] == [plan.token_GR[g, r]]
  counted = np.bincount(plan.expert_GR[plan.valid_GR], minlength=E)
  load, rows = plan.statistics['load']
  np.testing.assert_array_equal(load[:E], counted)
  assert float(rows) == float(load.sum())


LEARNED = sorted(set(CASES) - {'hash'})


@pytest.mark.parametrize('name', LEARNED)
def test_the_gradient_reaches_the_router(name):
  router, state, _ = CASES[name]
  logits = jnp.asarray(logits_of('random', E + router.num_added))

  def output(logits):
    plan = route(router, logits, VALID, state, **INPUTS)
    scale_GR = jnp.sin(jnp.arange(plan.expert_GR.size, dtype=jnp.float32))
    scale_GR = scale_GR.reshape(plan.expert_GR.shape)
    return jnp.sum(jnp.where(plan.valid_GR, plan.weight_GR * scale_GR, 0.0))

  gradient_GME = np.asarray(jax.jit(jax.grad(output))(logits))
  assert np.isfinite(gradient_GME).all()
  assert np.abs(gradient_GME[0]).max() > 1e-3
  np.testing.assert_array_equal(gradient_GME[~VALID], 0)


@pytest.mark.parametrize('name', CASES)
def test_padding_moves_no_choice_of_another_token_and_no_statistic(name):
  router, state, _ = CASES[name]
  logits = logits_of('random', E + router.num_added)
  other = np.where(VALID[..., None], logits, 100 + 50 * logits)
  plan, same = (
    routed(router, a, VALID, state, **INPUTS) for a in (logits, other)
  )
  for g in range(G):
    assert choices_of(same, g) == choices_of(plan, g)
    assert all(VALID[g][m] for m, _ in choices_of(plan, g))
  for found in ('losses', 'statistics'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(plan, found), getattr(same, found)
    )


# Routers without noise. Noise depends on a token's place in the group, so
# permuting tokens would change their choices.
QUIET = sorted(set(CASES) - {'noisy top-k', 'gshard'})


@pytest.mark.parametrize('name', QUIET)
def test_permuting_tokens_permutes_their_choices(name):
  router, state, _ = CASES[name]
  logits = logits_of('random', E + router.num_added)
  order = np.random.RandomState(6).permutation(M)
  ids = {k: INPUTS[k][:, order] for k in ('token_ids', 'modality')}
  ids['keys'] = INPUTS['keys']
  plan = routed(router, logits, VALID, state, **INPUTS)
  moved = routed(router, logits[:, order], VALID[:, order], state, **ids)
  for g in range(G):
    wanted = choices_of(plan, g)
    found = {(order[m], e): w for (m, e), w in choices_of(moved, g).items()}
    assert found == pytest.approx(wanted, rel=1e-5)


ALIKE = sorted(
  set(QUIET)
  - {'hash', 'null experts', 'modality-grouped'}
  - {'sigmoid in groups', 'top-k in groups'}
)


@pytest.mark.parametrize('name', ALIKE)
def test_renaming_experts_renames_choices(name):
  router, state, _ = CASES[name]
  logits = logits_of('random', E)
  order = np.random.RandomState(8).permutation(E)
  plan = routed(router, logits, VALID, state, **INPUTS)
  moved_state = {k: a[order] for k, a in state.items()}
  moved = routed(router, logits[..., order], VALID, moved_state, **INPUTS)
  for g in range(G):
    found = {(m, order[e]): w for (m, e), w in choices_of(moved, g).items()}
    assert found == pytest.approx(choices_of(plan, g), rel=1e-5)


@pytest.mark.parametrize('name', CASES)
def test_a_group_is_routed_alike_wherever_it_is(name):
  router, state, _ = CASES[name]
  logits = logits_of('random', E + router.num_added)
  whole = routed(router, logits, VALID, state, **INPUTS)
  back = {k: a[::-1] for k, a in INPUTS.items()}
  turned = routed(router, logits[::-1], VALID[::-1], state, **back)
  for g in range(G):
    assert choices_of(turned, g) == choices_of(whole, G - 1 - g)


def test_renormalised_weights_are_the_softmax_of_the_chosen_logits_alone():
  logits = logits_of('random', E)
  plan = routed(gates.TopK(3), logits)
  for g in range(G):
    for m in range(M):
      chosen = reference.best(logits[g, m], 3)
      weights = reference.softmax(logits[g, m][chosen].tolist())
      found = [choices_of(plan, g)[m, e] for e in chosen]
      assert found == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize('make', [gates.TopK, gates.Sigmoid])
def test_spare_choices_are_the_next_best_and_move_no_other_weight(make):
  logits = logits_of('random', E)
  states = {gates.TopK: {}, gates.Sigmoid: BIASED}
  plain = routed(make(2), logits, VALID, states[make])
  spare = routed(make(2, num_spare=1), logits, VALID, states[make])
  assert int(spare.num_spare) == 1 and spare.rows_GMA.shape == (G, M, 3)
  R = plain.expert_GR.shape[1]
  for name in ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR'):
    np.testing.assert_array_equal(
      getattr(spare, name)[:, :R], getattr(plain, name)
    )
  for found in ('losses', 'statistics'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(spare, found),
      getattr(plain, found),
    )
  third = routed(make(3), logits, VALID, states[make])
  np.testing.assert_array_equal(spare.expert_GR, third.expert_GR)


def test_jitter_multiplies_what_the_router_reads():
  router = gates.Switch(jitter=0.25)
  x = np.full((2, 50, 4), 2.0, np.float32)
  perturb = jax.jit(router.perturb)
  seen = np.asarray(perturb(x, KEYS[:2]))
  assert seen.min() >= 2 * 0.75 and seen.max() <= 2 * 1.25
  assert seen.min() < 2 * 0.8 and seen.max() > 2 * 1.2
  # The second group has the same noise if it is the only group.
  np.testing.assert_array_equal(perturb(x[1:], KEYS[1:2]), seen[1:])


def test_noise_is_left_out_in_evaluation():
  logits = logits_of('random', E)
  plan = routed(gates.NoisyTopK(2), logits, VALID, train=False)
  plain = routed(gates.TopK(2, renormalize=False), logits, VALID, train=False)
  np.testing.assert_array_equal(plan.weight_GR, plain.weight_GR)
  assert 'noisy_load' not in plan.losses


def test_gshard_uses_a_second_expert_as_often_as_twice_its_weight():
  # Logits (ln 4, 0) give the weights 4/5 and 1/5. Training uses a second expert
  # with probability 2 * 1/5. So 1,600 of 4,000 tokens are expected to use it,
  # with a standard deviation of sqrt(4000 * .4 * .6) = 31. In evaluation all
  # tokens use it.
  logits = np.tile(np.float32([math.log(4), 0]), (1, 4000, 1))
  seconds = lambda plan: int(plan.valid_GR[0, 4000:].sum())
  assert abs(seconds(routed(gates.GShard(2), logits)) - 1600) < 4 * 31
  assert seconds(routed(gates.GShard(2), logits, train=False)) == 4000


def test_the_bias_moves_choices_and_no_weights():
  # All scores are 1/2. Without the bias a token would choose experts 0 and 1;
  # with the bias it chooses 2 and 3. The weights are always 1/2.
  state = {
    'bias_E': np.float32([0, 0, 0.1, 0.1]),
    'load_E': np.zeros(4, np.float32),
  }
  plan = routed(gates.Sigmoid(2), np.zeros((1, 1, 4)), None, state)
  np.testing.assert_array_equal(plan.expert_GR, [[2, 3]])
  np.testing.assert_allclose(plan.weight_GR, [[0.5, 0.5]], rtol=1e-6)
  # The norm of the bias is sqrt(.1^2 + .1^2).
  norm, weight = plan.statistics['bias_norm']
  assert float(norm) == pytest.approx(0.141421, rel=1e-5) and weight == 1


def test_the_bias_follows_the_load_of_two_microbatches_by_its_sign():
  # The loads are 3 + 1, 0 + 1 and 1 + 1, with the mean 7/3. So the first bias
  # falls by .01, and the other biases rise by .01.
  router = gates.Sigmoid(2, bias_rate=0.01)
  state = router.init_state(3)
  for load in ([3, 0, 1], [1, 1, 1]):
    pair = (jnp.asarray(load, jnp.float32), jnp.float32(4))
    state = router.observe(state, {'load': pair})
  state = router.update(state)
  np.testing.assert_allclose(state['bias_E'], [-0.01, 0.01, 0.01], rtol=1e-6)
  np.testing.assert_array_equal(state['load_E'], 0)


def test_the_bias_of_layers_is_moved_layer_by_layer():
  router = gates.Sigmoid(2, bias_rate=0.5)
  load_LE = jnp.array([[2.0, 0.0], [0.0, 2.0]])
  state = router.update({'bias_E': jnp.zeros((2, 2)), 'load_E': load_LE})
  np.testing.assert_array_equal(state['bias_E'], [[-0.5, 0.5], [0.5, -0.5]])


def test_the_bias_balances_a_lopsided_router():
  logits = jnp.asarray(logits_of('random', E)).at[..., 0].add(2.0)
  router = gates.Sigmoid(2, bias_rate=0.05)

  @jax.jit
  def step(state, _):
    plan = route(router, logits, None, state)
    load_E = plan.statistics['load'][0]
    return router.update(router.observe(state, plan.statistics)), load_E

  _, load_SE = jax.lax.scan(step, router.init_state(E), None, length=60)
  # An even share of the 2 * 12 * 2 rows is 6 for each of 8 experts.
  assert load_SE[0].max() > 20
  assert load_SE[-20:].mean(axis=0).max() <= 9


def test_quantile_balancing_evens_the_load_within_a_few_steps():
  logits = jnp.asarray(logits_of('random', E)).at[..., 0].add(4.0)
  router = gates.Quantile(2, decay=0.0)

  @jax.jit
  def step(state, _):
    plan = route(router, logits, None, state)
    load_E = plan.statistics['load'][0]
    return router.update(router.observe(state, plan.statistics)), load_E

  state, load_SE = jax.lax.scan(step, router.init_state(E), None, length=8)
  assert load_SE[0].max() > 20 and load_SE[-1].max() <= 9
  np.testing.assert_allclose(state['bias_E'].sum(), 0, atol=1e-5)


def test_the_quantile_bias_is_an_average_over_tokens_and_steps():
  # One token has the prices (1, 3), and three tokens have (3, -1). The mean is
  # (2.5, 0). So the bias becomes .5 * (1, 1) - .5 * (2.5, 0) = (-.75, .5). Then
  # its mean, -.125, is subtracted, which gives (-.625, .625).
  router = gates.Quantile(2, decay=0.5)
  state = dict(router.init_state(2), bias_E=jnp.ones(2, jnp.float32))
  for price, tokens in (([1.0, 3.0], 1.0), ([9.0, -3.0], 3.0)):
    pair = (jnp.asarray(price, jnp.float32), jnp.float32(tokens))
    state = router.observe(state, {'price': pair})
  new = router.update(state)
  np.testing.assert_allclose(new['bias_E'], [-0.625, 0.625], rtol=1e-6)
  assert float(new['tokens']) == 0 and float(jnp.abs(new['price_E']).sum()) == 0
  # A step without tokens changes nothing.
  np.testing.assert_array_equal(router.update(new)['bias_E'], new['bias_E'])


def test_quantile_statistics_are_the_prices_times_tokens():
  logits = logits_of('random', E)
  state = {'bias_E': BIAS[:E]}
  price_E, tokens = routed(gates.Quantile(2), logits, VALID, state).statistics[
    'price'
  ]
  expected = sum(
    np.float64(reference.quantile_prices(logits[g], VALID[g], 2, BIAS[:E]))
    * VALID[g].sum()
    for g in range(G)
  )
  np.testing.assert_allclose(price_E, expected, rtol=1e-4, atol=1e-5)
  assert float(tokens) == VALID.sum()


def test_hashed_experts_of_consecutive_ids_are_balanced():
  ids = np.arange(1000, 1000 + 16 * 64, dtype=np.int32)[None]
  plan = routed(gates.Hash(1), np.zeros((1, 16 * 64, 16)), token_ids=ids)
  counts = np.bincount(plan.expert_GR[0], minlength=16)
  assert abs(counts - 64).max() <= 3
  np.testing.assert_array_equal(plan.weight_GR, 1)
  assert plan.losses == {}


def test_expert_choice_is_not_causal_and_gives_each_expert_equal_rows():
  plan = routed(gates.ExpertChoice(2), logits_of('all to one', E))
  assert not gates.ExpertChoice(2).is_causal and gates.TopK(2).is_causal
  # An expert takes C = 12 * 2 / 8 = 3 tokens in each of 2 groups.
  np.testing.assert_array_equal(plan.statistics['load'][0], np.full(E, 6))


def test_a_cap_on_experts_per_token_bounds_the_rows_of_a_plan():
  router = gates.ExpertChoice(2, max_per_token=3)
  plan = jax.eval_shape(P(route, router), logits_of('random', E))
  assert plan.rows_GMA.shape == (G, M, 3)


NOT_CAUSAL = {gates.ExpertChoice}
NOT_CAUSAL_IN_TRAINING = {gates.ExpertChoice, gates.Base, gates.Sinkhorn}


@pytest.mark.parametrize('name', gates.__all__)
def test_routers_say_whether_later_tokens_move_a_choice(name):
  make = getattr(gates, name)
  options = {'NullExperts': {'num_null': 1}}.get(name, {})
  router = make(**options)
  assert router.is_causal == (make not in NOT_CAUSAL)
  assert router.is_causal_in_training == (make not in NOT_CAUSAL_IN_TRAINING)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('name', sorted(CASES) + ['base'])
def test_claims_about_later_tokens_are_true(name, train):
  router, state, _ = CASES.get(name, (gates.Base(), {}, None))
  logits = logits_of('random', E + router.num_added)
  other = logits.copy()
  other[:, 6:] = 3 * logits[:, :6]
  one, two = (
    routed(router, a, None, state, train=train, **INPUTS)
    for a in (logits, other)
  )
  early = lambda plan: [
    {me for me in choices_of(plan, g) if me[0] < 6} for g in range(G)
  ]
  is_causal = router.is_causal_in_training if train else router.is_causal
  assert (early(one) == early(two)) == is_causal


def test_base_gives_every_expert_as_many_tokens_in_training_alone():
  logits = logits_of('all to one', 4)
  load = lambda train: routed(gates.Base(1), logits, train=train).statistics[
    'load'
  ][0]
  np.testing.assert_array_equal(load(True), [6] * 4)
  np.testing.assert_array_equal(load(False), [0, 0, 0, 24])


def test_base_weighs_with_the_sigmoid_of_the_chosen_logit():
  plan = routed(gates.Base(1), np.float32([[[1.0, 0.0], [3.0, 0.5]]]))
  # The sum of logits 0 + 3 is larger than 1 + .5, so token 0 gets expert 1. The
  # weights are sigmoid(0) and sigmoid(3).
  np.testing.assert_array_equal(plan.expert_GR, [[1, 0]])
  np.testing.assert_allclose(plan.weight_GR, [[0.5, 0.952574]], rtol=1e-5)


def test_the_gradient_of_base_reaches_the_router():
  weight = lambda logits: route(gates.Base(1), logits).weight_GR.sum()
  gradient = jax.jit(jax.grad(weight))(jnp.zeros((1, 2, 2)))
  # The derivative of sigmoid at 0 is 1/4, and each token has one expert.
  np.testing.assert_allclose(gradient.sum(axis=(0, 2)), [0.25, 0.25])


def test_sinkhorn_spreads_what_top_k_sends_to_one_expert():
  logits = logits_of('all to one', E)
  load = lambda train: routed(
    gates.Sinkhorn(1, num_iterations=20), logits, train=train
  ).statistics['load'][0]
  assert load(False).max() == G * M and load(True).max() <= 6


REFUSED = {
  'num_noise': (lambda: gates.NoisyTopK(2, noise_std=0.0), 'above 0'),
  'sigmoid, one expert': (lambda: gates.Sigmoid(1), 'TOP_K of at least 2'),
  'quantile, one expert': (lambda: gates.Quantile(1), 'TOP_K of at least 2'),
  'decay': (lambda: gates.Quantile(2, decay=1.0), 'at least 0 and below 1'),
  'gshard, three': (lambda: gates.GShard(3), 'set TOP_K = 2'),
  'base, two': (lambda: gates.Base(2), 'set TOP_K = 1'),
  'nothing added': (lambda: gates.NullExperts(2), 'needs experts to add'),
  'scope': (lambda: gates.TopK(2, 'batch'), 'must be one of'),
  'inner': (lambda: gates.NullExperts(1, num_null=1), 'renormalize=False'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_options_out_of_range_are_refused(name):
  make, message = REFUSED[name]
  with pytest.raises(ValueError, match=message):
    make()


ROUTED_REFUSED = {
  'all experts': (gates.Quantile(8), 'below NUM_EXPERTS=8'),
  'groups': (gates.Sigmoid(2, num_groups=3, top_groups=2), 'must divide'),
  'few groups': (gates.Sigmoid(3, num_groups=4, top_groups=1), 'raise top_gr'),
  'few groups of a softmax': (
    gates.TopK(3, num_groups=4, top_groups=1),
    'raise top_gr',
  ),
  'hash': (gates.Hash(9), 'TOP_K=9 <= NUM_EXPERTS=8'),
  'too many reserved': (
    gates.ModalityGrouped(2, reserved=(6, 3)),
    'at most 8 together',
  ),
  'too few left': (
    gates.ModalityGrouped(2, reserved=(7, 1)),
    'fewer than the 2 experts',
  ),
  'null and expert choice': (
    gates.NullExperts(3, router=gates.ExpertChoice, num_null=3),
    'in which tokens choose, got ExpertChoice',
  ),
}


@pytest.mark.parametrize('name', ROUTED_REFUSED)
def test_inputs_that_cannot_be_routed_are_refused(name):
  router, message = ROUTED_REFUSED[name]
  state = router.init_state(E)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      P(route, router), np.zeros((1, 16, E + router.num_added)), state=state
    )
