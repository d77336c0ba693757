"""How rows travel: every exchange gives what one device would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe.routing import dispatch, exchange
from moe.routing.plan import RoutingPlan, rows_of_choices

G, M, A, E, D = 4, 8, 2, 8, 6


def experts(w_EDD, block):
  def apply(rows, expert_rows_E):
    if expert_rows_E is None:
      return jnp.einsum('ESD,EDF->ESF', rows, w_EDD)
    return dispatch.grouped_matmul(rows, w_EDD, expert_rows_E, block)

  return apply


def local(exchanger, dispatcher, expert_axes, x_GMD, w_EDD, weight_GMA, choice):
  rows = rows_of_choices(*choice[:1], weight_GMA, *choice[1:])
  y_GMD, dropped = exchanger.apply(
    x_GMD,
    RoutingPlan(*rows, None, {}, {}),
    dispatcher,
    E,
    expert_axes,
    experts(w_EDD, getattr(dispatcher, 'block', None)),
  )
  return y_GMD, jax.lax.psum(dropped, expert_axes) if expert_axes else dropped


@functools.cache
def program(exchanger, dispatcher, num_devices):
  """Compiled: (y, dropped) and gradients, on so many devices."""
  if num_devices == 1:
    run = functools.partial(local, exchanger, dispatcher, ())
  else:
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ('expert',))
    run = jax.shard_map(
      functools.partial(local, exchanger, dispatcher, ('expert',)),
      mesh=mesh,
      in_specs=P('expert'),
      out_specs=(P('expert'), P()),
      check_vma=False,
    )

  def loss(x_GMD, w_EDD, weight_GMA, choice):
    y_GMD, dropped = run(x_GMD, w_EDD, weight_GMA, choice)
    scale = jnp.arange(y_GMD.size, dtype=jnp.float32).reshape(y_GMD.shape)
    return jnp.sum(jnp.sin(scale) * y_GMD), (y_GMD, dropped)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def outcome(exchanger, dispatcher, num_devices):
  random = np.random.RandomState(0)
  shapes = ((G, M, D), (E, D, D), (G, M, A))
  arrays = [random.randn(*shape).astype(np.float32) for shape in shapes]
  # Low experts are chosen more often, so some overflow; the end is padding.
  expert_GMA = random.randint(0, E, (2, G, M, A)).min(axis=0).astype(np.int32)
  valid_GM = np.arange(M) < np.array([[M], [M - 3], [M], [M - 1]])
  choice = expert_GMA, valid_GM
  return program(exchanger, dispatcher, num_devices)(*arrays, choice)


def assert_same(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    one,
    other,
  )


@pytest.mark.parametrize(
  'exchanger, dispatcher',
  [
    (exchange.AllToAll(), dispatch.Sorted(1.0)),
    (exchange.AllGather(), dispatch.Sorted(1.0)),
    (exchange.AllGather(), dispatch.Dropless(4)),
  ],
)
def test_four_devices_give_values_gradients_and_drops_of_one(
  exchanger, dispatcher
):
  four = outcome(exchanger, dispatcher, 4)
  one = outcome(exchange.AllToAll(), dispatcher, 1)
  assert_same(four, one)
  # The comparison says something only if capacity matters.
  dropped = float(one[0][1][1])
  assert (dropped > 0) != dispatcher.is_dropless


def test_all_to_all_refuses_rows_of_no_fixed_number():
  with pytest.raises(ValueError, match='use dispatch.Sorted, or'):
    outcome(exchange.AllToAll(), dispatch.Dropless(4), 4)


def test_rows_reach_the_expert_that_was_chosen():
  # Expert e multiplies by e + 1; token m holds 10 ** m; capacity is ample.
  # Token 0: 0.5 * 1 * 1 + 0.25 * 8 * 1 = 2.5; token 1: 10 * (2 + 0.5 * 3) = 35.
  def factors(rows, expert_rows_E):
    del expert_rows_E
    first = jax.lax.axis_index('expert').astype(jnp.float32) * 2
    return rows * (first + jnp.array([1.0, 2.0]))[:, None, None]

  def run(x_GMD, expert_GMA, weight_GMA):
    valid_GM = jnp.ones((1, 2), bool)
    rows = rows_of_choices(expert_GMA, weight_GMA, valid_GM)
    plan = RoutingPlan(*rows, None, {}, {})
    return exchange.AllToAll().apply(
      x_GMD, plan, dispatch.Sorted(8.0), E, ('expert',), factors
    )[0]

  mesh = Mesh(np.array(jax.devices()[:4]), ('expert',))
  y_GMD = jax.jit(
    jax.shard_map(run, mesh=mesh, in_specs=P('expert'), out_specs=P('expert'))
  )(
    np.tile(np.array([[[1.0], [10.0]]], np.float32), (4, 1, 1)),
    np.tile(np.array([[[0, 7], [1, 2]]], np.int32), (4, 1, 1)),
    np.tile(np.array([[[0.5, 0.25], [1.0, 0.5]]], np.float32), (4, 1, 1)),
  )
  np.testing.assert_allclose(y_GMD[..., 0], [[2.5, 35.0]] * 4)


@pytest.mark.parametrize(
  'exchanger', [exchange.AllToAll(), exchange.AllGather()]
)
def test_outputs_have_the_shape_of_the_tokens(exchanger):
  f32, i32 = jnp.float32, jnp.int32
  (_, (y_GMD, dropped)), gradients = jax.eval_shape(
    program(exchanger, dispatch.Sorted(2.0), 4),
    jax.ShapeDtypeStruct((G, M, D), f32),
    jax.ShapeDtypeStruct((E, D, D), f32),
    jax.ShapeDtypeStruct((G, M, A), f32),
    (
      jax.ShapeDtypeStruct((G, M, A), i32),
      jax.ShapeDtypeStruct((G, M), jnp.bool_),
    ),
  )
  assert y_GMD.shape == (G, M, D)
  assert dropped.shape == ()
  assert [g.shape for g in gradients] == [(G, M, D), (E, D, D), (G, M, A)]
