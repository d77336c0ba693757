"""Fast dispatches permute and unpermute rows like the reference."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import dispatch, slots
from moe.routing.grouped import grouped_matmul
from moe.routing.plan import RoutingPlan
from moe.routing.slots import permute
from moe.routing.token_choice import rows_of_choices

G, M, A, E, D, F = 2, 12, 2, 4, 5, 3
PLANS = {
  'random': lambda r: r.randint(0, E, (G, M, A)),
  'all_to_one': lambda r: np.zeros((G, M, A), int),
  'empty_experts': lambda r: 1 + 2 * r.randint(0, 2, (G, M, A)),
  'last_expert': lambda r: np.full((G, M, A), E - 1),
}
PADDING = {
  'none': np.ones((G, M), bool),
  'end': np.arange(M) < np.array([[M - 3], [M]]),
  'whole_group': np.array([[True] * M, [False] * M]),
}


def make_plan(expert_GMA, weight_GMA, valid_GM):
  expert_GMA = jnp.asarray(expert_GMA, jnp.int32)
  rows = rows_of_choices(expert_GMA, weight_GMA, jnp.asarray(valid_GM))
  return RoutingPlan(*rows, {}, {})


def through(dispatcher, x_GMD, w_EDF, weight_GMA, expert_GMA, valid_GM):
  """Sends tokens through linear experts and back; returns (y_GMF, dropped)."""
  plan = make_plan(expert_GMA, weight_GMA, valid_GM)
  capacity = dispatcher.capacity(M, A, E)
  permuted = dispatcher.permute(x_GMD, plan, E, capacity)
  if permuted.count_E is None:
    out = jnp.einsum('EUD,EDF,EU->EUF', permuted.rows, w_EDF, permuted.weight)
  else:
    rows = permuted.rows * permuted.weight[:, None]
    out = grouped_matmul(rows, w_EDF, permuted.count_E)
  return dispatcher.unpermute(out, permuted), permuted.dropped


@functools.cache
def layer(dispatcher):
  """Makes a jitted function of arrays -> ((loss, (y, dropped)), gradients).

  The gradients are with respect to tokens, expert matrices and weights.
  """

  def loss(*args):
    y_GMF, dropped = through(dispatcher, *args)
    # Each entry of y has a different factor in the loss.
    scale = jnp.arange(y_GMF.size, dtype=jnp.float32).reshape(y_GMF.shape)
    return jnp.sum(jnp.sin(scale) * y_GMF), (y_GMF, dropped)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def run(dispatcher, expert_GMA, valid_GM):
  random = np.random.RandomState(7)
  shapes = ((G, M, D), (E, D, F), (G, M, A))
  arrays = [random.randn(*shape).astype(np.float32) for shape in shapes]
  (_, (y_GMF, dropped)), gradients = layer(dispatcher)(
    *arrays, np.asarray(expert_GMA, np.int32), valid_GM
  )
  return y_GMF, gradients, float(dropped)


def assert_same(one, other):
  tolerance = dict(rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(one[0], other[0], **tolerance)
  for mine, its in zip(one[1], other[1], strict=True):
    np.testing.assert_allclose(mine, its, **tolerance)
  assert one[2] == other[2]


@pytest.mark.parametrize(
  'tokens, active, experts, factor, expected',
  [
    (16, 2, 8, 1.0, 4),  # The share is 16 * 2 / 8 = 4 rows.
    (16, 2, 8, 1.25, 5),  # The share 4 is multiplied by 1.25.
    (10, 1, 4, 1.0, 3),  # The share 10 * 1 / 4 = 2.5 is rounded up.
    (100, 2, 4, 1.1, 55),  # In floats 1.1 * 50 is a little more than 55.
    (4, 1, 64, 1.0, 1),  # The share is 1/16, but there is at least 1 slot.
    (4, 2, 2, 8.0, 4),  # An expert gets each of 4 tokens at most once.
  ],
)
def test_capacity_is_a_factor_times_an_even_share(
  tokens, active, experts, factor, expected
):
  assert slots.capacity(tokens, active, experts, factor) == expected


@pytest.mark.parametrize('padding', PADDING)
@pytest.mark.parametrize('plan', PLANS)
@pytest.mark.parametrize('factor', [0.1, 1.0])
def test_sorted_equals_the_reference(plan, padding, factor):
  # The factor 0.1 gives 0.1 * 12 * 2 / 4 = 0.6, rounded up to 1 slot. The
  # factor 1.0 gives 6 slots.
  expert_GMA = PLANS[plan](np.random.RandomState(3))
  one, other = (
    run(d(factor), expert_GMA, PADDING[padding])
    for d in (dispatch.Sorted, dispatch.Einsum)
  )
  assert_same(one, other)


def test_drops_are_counted_and_padding_is_no_drop():
  # All rows go to expert 0, which has 6 slots in each group. Group 0 has 9
  # tokens and 18 rows, and drops 12 of them. Group 1 has 12 tokens and 24 rows,
  # and drops 18.
  nobody_else = np.zeros((G, M, A), int)
  dropped = run(dispatch.Sorted(1.0), nobody_else, PADDING['end'])[2]
  assert dropped == 12 + 18


@pytest.mark.parametrize('padding', PADDING)
@pytest.mark.parametrize('plan', PLANS)
def test_dropless_equals_sorted_with_slots_for_all(plan, padding):
  # A router gives a token distinct experts, so here the second choice is two
  # experts after the first. With two equal choices per token an expert could
  # need more than 12 slots, which is the largest capacity.
  first_GM1 = PLANS[plan](np.random.RandomState(3))[..., :1]
  expert_GMA = np.concatenate([first_GM1, (first_GM1 + 2) % E], axis=-1)
  dropless = run(dispatch.Dropless(), expert_GMA, PADDING[padding])
  ample = run(dispatch.Sorted(float(E)), expert_GMA, PADDING[padding])
  assert ample[2] == 0
  assert_same(dropless, ample)


@pytest.mark.parametrize(
  'dispatcher', [dispatch.Sorted(1.0), dispatch.Einsum(1.0)]
)
def test_a_full_expert_turns_away_second_choices_first(dispatcher):
  # Three tokens have two choices each, so each of three experts has 1.0 * 3 * 2
  # / 3 = 2 slots. Expert 0 is the second choice of token 0 and the first choice
  # of tokens 1 and 2.
  @jax.jit
  def both_ways(x_GMD, weight_GMA):
    valid_GM = np.ones((1, 3), bool)
    plan = make_plan([[[1, 0], [0, 1], [0, 2]]], weight_GMA, valid_GM)
    permuted = dispatcher.permute(x_GMD, plan, 3, dispatcher.capacity(3, 2, 3))
    y_GMD = dispatcher.unpermute(permuted.rows, permuted)
    return permuted.rows, permuted.dropped, y_GMD

  x_GMD = np.array([[[1.0], [2.0], [3.0]]], np.float32)
  rows, dropped, y_GMD = both_ways(x_GMD, np.ones((1, 3, 2), np.float32))
  np.testing.assert_array_equal(rows[..., 0], [[2, 3], [1, 2], [3, 0]])
  assert float(dropped) == 1
  # Experts return their inputs, and weights are 1. Token 0 keeps one row, so
  # its output is 1. Tokens 1 and 2 keep two rows, so their outputs are twice
  # their inputs.
  np.testing.assert_array_equal(y_GMD[0, :, 0], [1, 4, 6])


def test_an_empty_slot_is_zero_whatever_the_first_token_holds():
  x_GMD = np.array([[[np.inf], [1.0]]], np.float32)
  token_GU = np.array([[1, -1]], np.int32)
  slot_GMA = np.array([[[-1], [0]]], np.int32)
  rows = jax.jit(permute)(x_GMD, token_GU, slot_GMA)
  np.testing.assert_array_equal(rows[0, :, 0], [1, 0])


def test_dropless_rows_lie_in_runs_with_zeros_behind_them():
  @jax.jit
  def permute_all(x_GMD):
    chosen = np.array([0, 2, 0, 2, 0, 1, 2, 0]).reshape(1, 8, 1)
    valid_GM = np.array([[True] * 7 + [False]])
    plan = make_plan(chosen, x_GMD, valid_GM)
    return dispatch.Dropless().permute(x_GMD, plan, 4)

  permuted = permute_all(np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1))
  np.testing.assert_array_equal(permuted.count_E, [3, 1, 3, 0])
  np.testing.assert_array_equal(permuted.rows[:, 0], [1, 3, 5, 6, 2, 4, 7, 0])
  assert float(permuted.dropped) == 0


def test_a_dropless_buffer_that_is_too_small_counts_what_it_loses():
  @jax.jit
  def permute_all(x_GMD):
    chosen = np.array([0, 2, 0, 2, 0, 1, 2, 0]).reshape(1, 8, 1)
    plan = make_plan(chosen, x_GMD, np.ones((1, 8), bool))
    return dispatch.Dropless().permute(x_GMD, plan, 4, capacity=6)

  permuted = permute_all(np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1))
  np.testing.assert_array_equal(permuted.count_E, [4, 1, 1, 0])
  np.testing.assert_array_equal(permuted.rows[:, 0], [1, 3, 5, 8, 6, 2])
  np.testing.assert_array_equal(
    permuted.slot_GMA[0, :, 0], [0, 5, 1, -1, 2, 4, -1, 3]
  )
  assert float(permuted.dropped) == 2


@pytest.mark.parametrize('factor', [0.0, -1.0])
@pytest.mark.parametrize('kind', [dispatch.Sorted, dispatch.Einsum])
def test_a_capacity_must_be_positive(kind, factor):
  with pytest.raises(
    ValueError, match=f'CAPACITY_FACTOR={factor} must be above 0'
  ):
    kind(factor)


def test_an_unknown_priority_is_refused():
  with pytest.raises(ValueError, match="priority='luck' must be one of"):
    dispatch.Sorted(priority='luck')


def scattered_shapes(function, *args):
  """Shapes of the results of all scatters in a program before optimisation."""
  text = jax.jit(function).lower(*args).as_text()
  pattern = r'"stablehlo\.scatter".*?\}\) : \([^)]*\) -> tensor<([^>]*)>'
  return re.findall(pattern, text, flags=re.DOTALL)


WIDE = 37  # width of tokens and of outputs; no other dim has this size


def obvious(x_GMD, w_EDF, weight_GMA, expert_GMA, valid_GM):
  """Computes what `through` does, by plain indexing with slots of `Sorted`."""
  plan = make_plan(expert_GMA, weight_GMA, valid_GM)
  permuted = dispatch.Sorted(1.0).permute(x_GMD, plan, E, 6)
  token_GU = permuted.token_GU
  rows_GUD = jnp.take_along_axis(
    x_GMD, jnp.maximum(token_GU, 0)[..., None], axis=1
  )
  rows_GUD = jnp.where(token_GU[..., None] >= 0, rows_GUD, 0.0)
  rows_GECD = rows_GUD.reshape(G, E, -1, x_GMD.shape[-1])
  out = jnp.einsum('GECD,EDF->GECF', rows_GECD, w_EDF)
  out_GUF = out.reshape(G, -1, w_EDF.shape[-1])
  slot_GR = permuted.slot_GMA.reshape(G, -1)
  got_GKF = jnp.take_along_axis(
    out_GUF, jnp.maximum(slot_GR, 0)[..., None], axis=1
  )
  got_GKF = jnp.where(slot_GR[..., None] >= 0, got_GKF, 0.0)
  got_GMAF = got_GKF.reshape(G, M, A, -1)
  return jnp.einsum('GMAF,GMA->GMF', got_GMAF, weight_GMA), permuted.dropped


@functools.cache
def wide_arguments():
  random = np.random.RandomState(5)
  shapes = ((G, M, WIDE), (E, WIDE, WIDE), (G, M, A))
  arrays = [random.randn(*shape).astype(np.float32) for shape in shapes]
  expert_GMA = random.randint(0, E, (G, M, A)).astype(np.int32)
  return *arrays, expert_GMA, PADDING['end']


def gradients_of(function):
  loss = lambda *args: jnp.sum(jnp.square(function(*args)[0]))
  return jax.grad(loss, argnums=(0, 1, 2))


def test_gathering_backward_passes_agree_with_plain_autodiff():
  fast = functools.partial(through, dispatch.Sorted(1.0))
  mine, its = (
    jax.jit(gradients_of(f))(*wide_arguments()) for f in (fast, obvious)
  )
  for one, other in zip(mine, its, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def is_rows(shape):
  """Whether a shape has rows of width `WIDE` and does not start with dim E."""
  return f'x{WIDE}x' in shape and not shape.startswith(f'{E}x')


def test_plain_autodiff_adds_up_rows_in_scattered_places():
  # This shows that the next test would find scatters.
  shapes = scattered_shapes(gradients_of(obvious), *wide_arguments())
  assert [s for s in shapes if is_rows(s)]


@pytest.mark.parametrize(
  'dispatcher', [dispatch.Sorted(1.0), dispatch.Dropless()]
)
def test_no_backward_pass_adds_up_rows_in_scattered_places(dispatcher):
  fast = functools.partial(through, dispatcher)
  shapes = scattered_shapes(gradients_of(fast), *wide_arguments())
  assert not [s for s in shapes if is_rows(s)]
