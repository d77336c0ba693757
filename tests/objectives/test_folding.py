"""The objective of folding: gradients, empty rows, steps, growing shares."""

import jax
import numpy as np
import pytest

from moe.objectives import folding
from tests import folding_cases

pytestmark = pytest.mark.slow

FACTORS = folding.Factors(all_atom_fape=1.0, violations=1.0)


def objective(functional, **options):
  return folding.folding(functional, (2, 16), FACTORS, **options)


def test_every_term_is_finite_and_has_a_gradient():
  run, functional, params, state = folding_cases.tiny()
  batch = folding_cases.batch(run)
  made = objective(functional, recycles=1)
  state = {'model': state, 'steps': np.int32(5)}

  def total(params):
    sums, new, metrics = made.loss(
      params, state, batch, jax.random.key(0), True
    )
    weights = made.weights(batch)
    loss = sum(made.coefficients[n] * s / weights[n] for n, s in sums.items())
    return loss, (sums, new, metrics)

  (loss, (sums, _, metrics)), grads = jax.jit(
    jax.value_and_grad(total, has_aux=True)
  )(params)
  assert set(sums) == set(made.coefficients)
  assert np.isfinite(loss) and all(s >= 0 for s in sums.values())
  assert 0 <= metrics['lddt'][0] / metrics['lddt'][1] <= 1
  flat = jax.tree_util.tree_flatten_with_path(grads)[0]
  assert all(np.isfinite(leaf).all() for _, leaf in flat)
  without = [
    jax.tree_util.keystr(path) for path, leaf in flat if not np.any(leaf)
  ]
  assert not without


def test_a_row_without_a_chain_adds_nothing():
  run, functional, params, state = folding_cases.tiny()
  made = objective(functional)
  state = {'model': state, 'steps': np.int32(0)}
  loss = jax.jit(lambda b: made.loss(params, state, b, None, False)[0])
  both, one = folding_cases.batch(run), folding_cases.batch(run)
  for array in one.values():
    array[1] = 0
  alone = loss(one)
  first = loss({name: array[[0, 0]] for name, array in both.items()})
  for name in ('fape', 'distogram', 'smooth_lddt', 'torsions', 'plddt'):
    np.testing.assert_allclose(2 * alone[name], first[name], rtol=1e-4)
  assert made.weights(one)['fape'] == 1
  assert made.amount(one) == 16


def test_the_steps_that_ramp_the_clamp_are_counted_once_a_step():
  run, functional, _, state = folding_cases.tiny()
  made = objective(functional)
  new = made.update({'model': state, 'steps': np.int32(3)})
  assert new['steps'] == 4


def test_violations_count_more_from_step_to_step():
  run, functional, params, state = folding_cases.tiny()
  options = {'violations_from': 4, 'violations_full': 7, 'recycles': 0}
  made = objective(functional, **options)
  batch = folding_cases.batch(run)

  def violations(steps, train=True):
    given = {'model': state, 'steps': steps}
    found = made.loss(params, given, batch, jax.random.key(0), train)
    return found[0]['violations']

  found = jax.jit(jax.vmap(violations))(np.arange(10))
  whole = violations(np.int32(0), train=False)
  assert whole > 0
  shares = [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
  np.testing.assert_allclose(found / whole, shares, rtol=1e-4)


def test_numbers_out_of_range_are_refused():
  functional = folding_cases.tiny()[1]
  with pytest.raises(ValueError, match='RECYCLES=-1'):
    objective(functional, recycles=-1)
  with pytest.raises(ValueError, match='fape=-1'):
    folding.Factors(fape=-1)
