"""Packing and unpacking: the fast dispatches against the obvious one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import dispatch
from moe.routing.plan import RoutingPlan, rows_of_choices

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
  return RoutingPlan(*rows, None, {}, {})


def through(dispatcher, x_GMD, w_EDF, weight_GMA, expert_GMA, valid_GM):
  """Tokens through linear experts and back: (y_GMF, dropped)."""
  plan = make_plan(expert_GMA, weight_GMA, valid_GM)
  packed = dispatcher.pack(x_GMD, plan, E)
  if packed.expert_rows_E is None:
    out = jnp.einsum('GECD,EDF->GECF', packed.rows, w_EDF)
  else:
    out = dispatch.grouped_matmul(
      packed.rows, w_EDF, packed.expert_rows_E, dispatcher.block
    )
  return dispatcher.unpack(out, plan, packed), packed.dropped


@functools.cache
def layer(dispatcher):
  """Compiled: (y, dropped) and gradients by tokens, experts and weights."""

  def loss(*args):
    y_GMF, dropped = through(dispatcher, *args)
    # An uneven loss: every place of y counts differently.
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
  'tokens, active, experts, factor, slots',
  [
    (16, 2, 8, 1.0, 4),  # 16 * 2 / 8
    (16, 2, 8, 1.25, 5),  # 1.25 * 4
    (10, 1, 4, 1.0, 3),  # 2.5, rounded up
    (100, 2, 4, 1.1, 55),  # 1.1 * 50, of which floats make a little more
    (4, 1, 64, 1.0, 1),  # 1/16, at least 1
    (4, 2, 2, 8.0, 4),  # 32, but an expert sees a token once
  ],
)
def test_capacity_is_a_factor_times_an_even_share(
  tokens, active, experts, factor, slots
):
  assert dispatch.capacity(tokens, active, experts, factor) == slots


@pytest.mark.parametrize('padding', PADDING)
@pytest.mark.parametrize('plan', PLANS)
@pytest.mark.parametrize('factor', [0.1, 1.0])
def test_sorted_equals_the_reference(plan, padding, factor):
  # 0.1 * 12 * 2 / 4 = 0.6: one slot; 1.0: six.
  expert_GMA = PLANS[plan](np.random.RandomState(3))
  one, other = (
    run(d(factor), expert_GMA, PADDING[padding])
    for d in (dispatch.Sorted, dispatch.Einsum)
  )
  assert_same(one, other)


def test_drops_are_counted_and_padding_is_no_drop():
  # All 12 + 12 rows of a group go to expert 0, which has 6 slots. Group 0 has
  # 9 tokens: 18 - 6 = 12; group 1 has 12: 24 - 6 = 18.
  nobody_else = np.zeros((G, M, A), int)
  dropped = run(dispatch.Sorted(1.0), nobody_else, PADDING['end'])[2]
  assert dropped == 12 + 18


@pytest.mark.parametrize('padding', PADDING)
@pytest.mark.parametrize('plan', PLANS)
def test_dropless_equals_sorted_with_room_for_all(plan, padding):
  # Of random choices both may be the same expert, which needs 2 * 12 slots;
  # the capacity is at most 12, so choose distinct ones, as a router does.
  first_GM1 = PLANS[plan](np.random.RandomState(3))[..., :1]
  expert_GMA = np.concatenate([first_GM1, (first_GM1 + 2) % E], axis=-1)
  dropless = run(dispatch.Dropless(4), expert_GMA, PADDING[padding])
  room = run(dispatch.Sorted(float(E)), expert_GMA, PADDING[padding])
  assert room[2] == 0
  assert_same(dropless, room)


@pytest.mark.parametrize(
  'dispatcher', [dispatch.Sorted(1.0), dispatch.Einsum(1.0)]
)
def test_a_full_expert_turns_away_second_choices_first(dispatcher):
  # Three tokens, three experts: 1.0 * 3 * 2 / 3 = 2 slots. Expert 0 is the
  # second choice of token 0 and the first of tokens 1 and 2.
  @jax.jit
  def both_ways(x_GMD, weight_GMA):
    valid_GM = np.ones((1, 3), bool)
    plan = make_plan([[[1, 0], [0, 1], [0, 2]]], weight_GMA, valid_GM)
    packed = dispatcher.pack(x_GMD, plan, 3)
    y_GMD = dispatcher.unpack(packed.rows, plan, packed)
    return packed.rows, packed.dropped, y_GMD

  x_GMD = np.array([[[1.0], [2.0], [3.0]]], np.float32)
  rows, dropped, y_GMD = both_ways(x_GMD, np.ones((1, 3, 2), np.float32))
  np.testing.assert_array_equal(rows[0, :, :, 0], [[2, 3], [1, 2], [3, 0]])
  assert float(dropped) == 1
  # Experts that change nothing give back token 0 once, the others twice.
  np.testing.assert_array_equal(y_GMD[0, :, 0], [1, 4, 6])


def test_an_empty_slot_is_zero_whatever_the_first_token_holds():
  x_GMD = np.array([[[np.inf], [1.0]]], np.float32)
  token_GS = np.array([[1, -1]], np.int32)
  slot_GMA = np.array([[[-1], [0]]], np.int32)
  rows = jax.jit(dispatch.gather_rows)(x_GMD, token_GS, slot_GMA)
  np.testing.assert_array_equal(rows[0, :, 0], [1, 0])


def test_capacity_is_that_of_all_experts_where_some_are_held_here():
  # 1.0 * 12 * 2 / 4 = 6 slots, also where 2 of the 4 experts are packed for.
  def pack(dispatcher, x_GMD, weight_GMA):
    plan = make_plan(np.zeros((G, M, A)), weight_GMA, PADDING['none'])
    return dispatcher.pack(x_GMD, plan, num_experts=2, shards=2).rows

  for d in (dispatch.Sorted(1.0), dispatch.Einsum(1.0)):
    x_GMD = jax.ShapeDtypeStruct((G, M, D), jnp.float32)
    weight_GMA = jax.ShapeDtypeStruct((G, M, A), jnp.float32)
    rows = jax.eval_shape(functools.partial(pack, d), x_GMD, weight_GMA)
    assert rows.shape == (G, 2, 6, D)


def test_dropless_rows_of_an_expert_fill_whole_blocks():
  # Rows per expert: 5, 0, 3, 0 in blocks of 4: 8, 0, 4, 0; 8 rows in all would
  # take 2 blocks, and 4 more for the partial one of each expert: 24 slots.
  @jax.jit
  def pack(x_GMD):
    chosen = np.array([0, 0, 0, 0, 0, 2, 2, 2]).reshape(1, 8, 1)
    plan = make_plan(chosen, x_GMD, np.ones((1, 8), bool))
    return dispatch.Dropless(block=4).pack(x_GMD, plan, 4)

  packed = pack(np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1))
  np.testing.assert_array_equal(packed.expert_rows_E, [8, 0, 4, 0])
  expected = [1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 0] + [0] * 12
  np.testing.assert_array_equal(packed.rows[:, 0], expected)


# Rows of the experts, whole blocks of 4; the last 8 of 24 belong to nobody.
COUNTS = np.array([8, 0, 4, 4], np.int32)


def test_grouped_matmul_equals_the_obvious_loop():
  random = np.random.RandomState(0)
  x_RD = random.randn(24, D).astype(np.float32)
  x_RD[16:] = 0
  w_EDF = random.randn(E, D, F).astype(np.float32)
  scale = random.randn(16, F).astype(np.float32)

  def loop(x_RD, w_EDF):
    ends = np.cumsum(COUNTS)
    runs = [x_RD[end - n : end] for end, n in zip(ends, COUNTS, strict=True)]
    return jnp.concatenate([run_RD @ w_EDF[e] for e, run_RD in enumerate(runs)])

  def grouped(x_RD, w_EDF):
    return dispatch.grouped_matmul(x_RD, w_EDF, jnp.asarray(COUNTS), 4)[:16]

  def with_gradients(product):
    def scaled(x_RD, w_EDF):
      y_RF = product(x_RD, w_EDF)
      return jnp.sum(y_RF * scale), y_RF

    return jax.jit(jax.value_and_grad(scaled, (0, 1), has_aux=True))

  mine, its = (with_gradients(f)(x_RD, w_EDF) for f in (grouped, loop))
  for one, other in zip(
    jax.tree.leaves(mine), jax.tree.leaves(its), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def lowered(platform):
  """The program of one grouped product and its gradients, as text."""

  def loss(x_RD, w_EDF, counts_E):
    return dispatch.grouped_matmul(x_RD, w_EDF, counts_E, 4).sum()

  shapes = [
    jax.ShapeDtypeStruct((24, D), jnp.float32),
    jax.ShapeDtypeStruct((E, D, F), jnp.float32),
    jax.ShapeDtypeStruct((E,), jnp.int32),
  ]
  traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*shapes)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_program_for_a_tpu_has_ragged_products_though_made_on_a_cpu():
  assert jax.default_backend() == 'cpu'
  assert 'ragged_dot' in lowered('tpu')


def test_the_program_for_a_cpu_has_none():
  program = lowered('cpu')
  assert 'ragged_dot' not in program
  assert 'dot_general' in program


def scattered_shapes(function, *args):
  """Result shapes of the scatters in a program, before optimisation."""
  text = jax.jit(function).lower(*args).as_text()
  pattern = r'"stablehlo\.scatter".*?\}\) : \([^)]*\) -> tensor<([^>]*)>'
  return re.findall(pattern, text, flags=re.DOTALL)


WIDE = 37  # a width that no other dim has


def obvious(x_GMD, w_EDF, weight_GMA, expert_GMA, valid_GM):
  """The same, by plain indexing with the slots that Sorted found."""
  plan = make_plan(expert_GMA, weight_GMA, valid_GM)
  packed = dispatch.Sorted(1.0).pack(x_GMD, plan, E)
  token_GS = jnp.take_along_axis(
    plan.token_GR, jnp.maximum(packed.row_GS, 0), axis=1
  )
  rows_GSD = jnp.take_along_axis(x_GMD, token_GS[..., None], axis=1)
  rows_GSD = jnp.where(packed.row_GS[..., None] >= 0, rows_GSD, 0.0)
  rows_GECD = rows_GSD.reshape(G, E, -1, x_GMD.shape[-1])
  out = jnp.einsum('GECD,EDF->GECF', rows_GECD, w_EDF)
  out_GSF = out.reshape(G, -1, w_EDF.shape[-1])
  slot_GMA = jnp.take_along_axis(
    packed.slot_GR, plan.rows_GMA.reshape(G, -1), axis=1
  )
  got_GKF = jnp.take_along_axis(
    out_GSF, jnp.maximum(slot_GMA, 0)[..., None], axis=1
  )
  got_GKF = jnp.where(slot_GMA[..., None] >= 0, got_GKF, 0.0)
  got_GMAF = got_GKF.reshape(G, M, A, -1)
  return jnp.einsum('GMAF,GMA->GMF', got_GMAF, weight_GMA), packed.dropped


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
  """Whether a scatter's result has rows of the model's width."""
  return f'x{WIDE}x' in shape and not shape.startswith(f'{E}x')


def test_plain_autodiff_adds_up_rows_in_scattered_places():
  # What the next test looks for exists, and is found.
  shapes = scattered_shapes(gradients_of(obvious), *wide_arguments())
  assert [s for s in shapes if is_rows(s)]


@pytest.mark.parametrize(
  'dispatcher', [dispatch.Sorted(1.0), dispatch.Dropless(4)]
)
def test_no_backward_pass_adds_up_rows_in_scattered_places(dispatcher):
  fast = functools.partial(through, dispatcher)
  shapes = scattered_shapes(gradients_of(fast), *wide_arguments())
  assert not [s for s in shapes if is_rows(s)]
