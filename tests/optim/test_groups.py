import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.models.parametrisation import CompleteP
from moe.optim import groups, optimizers
from moe.optim.groups import Factors

CONSTANT = optax.constant_schedule(0.5)


def test_factors_of_all_groups_that_match_in_full_are_multiplied():
  of = groups.factors_of((('.*/router', 2.0, 0.0), ('moe/.*', 0.5, 3.0)))
  assert of('moe/router') == Factors(1.0, 0.0)
  assert of('moe/w_up') == Factors(0.5, 3.0)
  assert of('some/moe/w_up') == Factors(1.0, 1.0)


PARAMS = {
  'w_DF': jnp.array([[2.0, -4.0]]),
  'router': jnp.array([[2.0]]),
  'scale': jnp.array([2.0]),
  'bias': jnp.array([2.0]),
}


def updated(optimizer):
  grads = jax.tree.map(lambda p: jnp.full_like(p, 7.0), PARAMS)
  updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
  return optax.apply_updates(PARAMS, updates)


ROUTER = (('router', 0.1, 0.0),)


def test_a_group_has_its_rate_and_its_decay_of_adamw():
  made = optimizers.adamw(CONSTANT, factors=groups.factors_of(ROUTER))
  got = updated(optimizers.build(made, clip_norm=0))
  # Adam's first update is the sign of the gradient, so w becomes w - 0.5 (1 +
  # 0.1 w). The router has the learning rate 0.05 and no decay.
  np.testing.assert_allclose(got['w_DF'], [[1.4, -4.3]], rtol=1e-5)
  np.testing.assert_allclose(got['router'], [[1.95]], rtol=1e-5)
  np.testing.assert_allclose(got['scale'], [1.5], rtol=1e-5)


def test_a_group_has_its_rate_and_its_decay_of_adafactor():
  factors = groups.factors_of((('w_DF', 0.1, 2.0),))
  made = optimizers.adafactor(CONSTANT, weight_decay=0.1, factors=factors)
  got = updated(optimizers.build(made, clip_norm=0))
  # All gradients are equal, so Adafactor's update is 1 before the learning
  # rate, which is 0.05 for w. The decay does not depend on the learning rate,
  # so w becomes w - 0.05 - 0.2 w.
  np.testing.assert_allclose(got['w_DF'], [[1.55, -3.25]], rtol=1e-4)
  np.testing.assert_allclose(got['router'], [[1.5]], rtol=1e-4)


def test_a_group_has_its_rate_and_its_decay_of_muon():
  of = lambda name, is_orthogonal: Factors(0.1 if is_orthogonal else 1.0, 0.0)
  plain = updated(optimizers.build(optimizers.muon(CONSTANT, weight_decay=0.0)))
  got = updated(optimizers.build(optimizers.muon(CONSTANT, factors=of)))
  moved = lambda params, name: np.asarray(params[name] - PARAMS[name])
  np.testing.assert_allclose(
    moved(got, 'w_DF'), 0.1 * moved(plain, 'w_DF'), rtol=1e-4
  )
  np.testing.assert_allclose(
    moved(got, 'router'), moved(plain, 'router'), rtol=1e-4
  )


WIDER = CompleteP(base_width=64, base_depth=1)


@pytest.mark.parametrize(
  'factors',
  [
    None,
    groups.factors_of((('.*', 1.0, 0.5),)),
    groups.factors_of((('.*router', 1.0, 2.0),)),
    lambda name, is_orthogonal: Factors(
      rate_alone=WIDER.rate(f'a/{name}', is_orthogonal, 128)
    ),
  ],
  ids=['none', 'all', 'routers', 'CompleteP'],
)
@pytest.mark.parametrize(
  'made', [optimizers.adamw, optimizers.adafactor, optimizers.muon]
)
def test_no_optimizer_and_no_group_decays_routers_scales_and_biases(
  made, factors
):
  with_decay, without = (
    updated(optimizers.build(made(CONSTANT, weight_decay=w, factors=factors)))
    for w in (0.1, 0.0)
  )
  for name in PARAMS:
    is_decayed = not np.array_equal(with_decay[name], without[name])
    assert is_decayed == (name == 'w_DF'), name


@pytest.mark.parametrize(
  ('made', 'w'),
  [
    # The update is 0.25 of the sign and the whole decay: w becomes w - 0.5
    # (0.25 + 0.1 w).
    (optimizers.adamw, [[1.775, -3.925]]),
    # The decay does not depend on the learning rate: w becomes w - 0.125 - 0.1
    # w.
    (optimizers.adafactor, [[1.675, -3.725]]),
  ],
)
def test_a_factor_of_the_rate_alone_does_not_change_the_decay(made, w):
  of = lambda name, is_orthogonal: Factors(rate_alone=0.25)
  optimizer = made(CONSTANT, weight_decay=0.1, factors=of)
  got = updated(optimizers.build(optimizer, clip_norm=0))
  np.testing.assert_allclose(got['w_DF'], w, rtol=1e-4)


def test_factors_of_one_change_nothing():
  plain = updated(optimizers.build(optimizers.adamw(CONSTANT)))
  factors = groups.factors_of((('.*', 1.0, 1.0),))
  got = updated(optimizers.build(optimizers.adamw(CONSTANT, factors=factors)))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_group_that_matches_nothing_is_refused():
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT), groups=(('routers', 1.0, 0.0),)
  )
  with pytest.raises(ValueError, match="GROUPS pattern 'routers' must match"):
    jax.eval_shape(optimizer.init, PARAMS)


@pytest.mark.parametrize(
  'group', [('a(', 1.0, 1.0), ('a', -1.0, 1.0), ('a', 1.0)]
)
def test_what_is_no_group_is_refused(group):
  with pytest.raises(ValueError, match='GROUPS'):
    groups.factors_of((group,))
