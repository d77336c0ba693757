"""Every exchange gives the oracle's result on 1, 2, 4 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe.routing import dispatch, exchange
from tests.routing import matrix


def assert_same(one, other):
  for a, b in (
    (one.y_GMD, other.y_GMD),
    (one.experts_GM, other.experts_GM),
    *zip(one.gradients, other.gradients, strict=True),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def cells():
  """Yields all supported cases; on one device all exchanges are the same."""
  for dispatch_name, dispatcher in matrix.DISPATCHES.items():
    for exchange_name in matrix.EXCHANGES:
      is_all_to_all = exchange_name == 'AllToAll'
      for n in matrix.DEVICES:
        if n == 1 and not is_all_to_all:
          continue
        if n > 1 and is_all_to_all and dispatcher.is_dropless:
          continue
        # The fast suite runs on one and four devices, the slow suite on eight,
        # and the nightly suite on two.
        marks = {2: pytest.mark.nightly, 8: pytest.mark.slow}.get(n, ())
        yield pytest.param(
          dispatch_name,
          exchange_name,
          n,
          id=f'{dispatch_name}-{exchange_name}-{n}',
          marks=marks,
        )


@pytest.mark.parametrize(
  'dispatch_name, exchange_name, num_devices', [*cells()]
)
def test_outputs_gradients_and_drops_are_those_of_the_oracle(
  dispatch_name, exchange_name, num_devices
):
  dispatcher = matrix.DISPATCHES[dispatch_name]
  exchanger = matrix.EXCHANGES[exchange_name]
  for plan in matrix.PLANS:
    its = matrix.expected(exchanger, dispatcher, num_devices, plan)
    mine = matrix.run(exchanger, dispatcher, num_devices, plan)
    assert_same(mine, its)
    for name, pair in its.traffic.items():
      assert mine.traffic[name] == pair, (name, plan)


@pytest.mark.parametrize(
  'dispatch_name, exchange_name, n',
  [
    ('Sorted', 'AllToAll', 1),
    ('Sorted', 'Ragged, worst case', 4),
    ('Dropless', 'Ragged, bounded', 4),
  ],
)
def test_the_plans_reach_every_bound(dispatch_name, exchange_name, n):
  exchanger = matrix.EXCHANGES[exchange_name]
  dispatcher = matrix.DISPATCHES[dispatch_name]
  kept_GR = matrix.kept_rows(exchanger, dispatcher, n, 'all to one')
  assert kept_GR.sum() < matrix.A * matrix.VALID_GM.sum()


@pytest.mark.parametrize('dispatch_name', ['Sorted', 'Dropless'])
def test_a_bounded_buffer_that_fits_all_equals_the_worst_case_one(
  dispatch_name,
):
  # A device gets at most all 8 * 8 tokens, and its two experts at most 2 * 64
  # rows. An even share for one of four devices is 16 * 3 rows. Four times this
  # share is 192 rows, so all fit.
  dispatcher = matrix.DISPATCHES[dispatch_name]
  for plan in matrix.PLANS:
    bounded = matrix.run(exchange.Ragged(4.0), dispatcher, 4, plan)
    worst = matrix.run(exchange.Ragged(0), dispatcher, 4, plan)
    assert_same(bounded, worst)
    assert bounded.traffic['dropped'] == worst.traffic['dropped']


def test_receivers_favour_no_sender():
  # All tokens choose experts 0, 1 and 2. Each of these experts has 1.0 * 64 * 3
  # / 8 = 24 slots, so each of the four senders gets 6 of them.
  args = list(matrix.arguments('all to one'))
  args[4] = np.ones((matrix.G, matrix.M), bool)
  step = matrix.program(exchange.Ragged(0), dispatch.Sorted(1.0), 4)
  weight_gradient_GMA = np.asarray(step(*args)[1][2])
  kept_4A = (weight_gradient_GMA != 0).reshape(4, -1, matrix.A).sum(axis=1)
  np.testing.assert_array_equal(kept_4A, 6)


def test_pooled_capacity_serves_rows_that_single_groups_drop():
  # Each group sends all of its tokens to three experts, which overflow. Over
  # all groups, the experts have equal loads.
  args = list(matrix.arguments('random'))
  first_G = np.arange(matrix.G, dtype=np.int32)[:, None, None]
  steps_A = np.arange(matrix.A, dtype=np.int32)
  args[3] = np.broadcast_to(
    (first_G + steps_A) % matrix.E, (matrix.G, matrix.M, matrix.A)
  )
  args[4] = np.ones((matrix.G, matrix.M), bool)
  lost = {}
  for exchanger in (exchange.AllToAll(), exchange.Ragged(0)):
    step = matrix.program(exchanger, dispatch.Sorted(1.0), 4)
    lost[type(exchanger).__name__] = float(step(*args)[0][1][2]['dropped'][0])
  # With AllToAll, each of 3 experts gets 8 rows of a group, and has 1.0 * 8 * 3
  # / 8 = 3 slots for this group. There are 8 groups.
  assert lost == {'AllToAll': 8 * 3 * (8 - 3), 'Ragged': 0}


def test_a_token_travels_once_to_a_device_that_holds_two_of_its_experts():
  # All tokens choose experts 0, 1 and 2, which are on device 0 of 2. So only
  # the tokens of device 1 are sent, once to device 0 and once back. On the way
  # to device 0, each token has two float32 numbers for each of 3 choices: the
  # weight and the expert. Each device also sends 2 counts to the other device.
  dispatcher, n = matrix.DISPATCHES['Dropless'], 2
  out = matrix.run(exchange.Ragged(0), dispatcher, n, 'all to one')
  tokens = matrix.VALID_GM[4:].sum()
  total, devices = out.traffic['bytes_exchanged']
  assert devices == n
  assert total == tokens * (2 * matrix.D * 4 + 3 * 2 * 4) + 2 * (2 * 4)


def sent_bytes(jaxpr, n):
  """Bytes that each of n devices sends in a program.

  A sum over devices counts only if its result has three dims, as tokens have;
  others are sums of statistics.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    for inner in core.jaxprs_in_params(eqn.params):
      total += sent_bytes(inner, n)
    size = lambda vars_: sum(v.aval.size * v.aval.dtype.itemsize for v in vars_)
    match eqn.primitive.name:
      case 'all_to_all':
        total += size(eqn.invars) * (n - 1) / n
      case 'all_gather':
        total += size(eqn.invars) * (n - 1)
      case 'reduce_scatter':
        total += size(eqn.outvars) * (n - 1)
      case 'psum' if eqn.outvars[0].aval.ndim == 3:
        total += size(eqn.invars) * 2 * (n - 1) / n
  return total


@pytest.mark.parametrize(
  'dispatch_name, exchange_name',
  [
    ('Sorted', 'AllToAll'),
    ('Dropless', 'AllGather'),
    ('Dropless', 'Replicated, decoding'),
  ],
)
def test_the_bytes_counted_are_those_of_the_programs_collectives(
  dispatch_name, exchange_name
):
  exchanger = matrix.EXCHANGES[exchange_name]
  dispatcher, n = matrix.DISPATCHES[dispatch_name], 4
  out = matrix.run(exchanger, dispatcher, n, 'random')
  total, devices = out.traffic['bytes_exchanged']
  # The count of experts by token is not part of the counted bytes.
  forward = matrix.layer(exchanger, dispatcher, n, counts_experts=False)
  program = jax.make_jaxpr(forward)(*matrix.arguments('random'))
  assert total / devices == sent_bytes(program.jaxpr, n) > 0


def test_nothing_travels_on_one_device():
  for exchanger in matrix.EXCHANGES.values():
    out = matrix.run(exchanger, matrix.DISPATCHES['Sorted'], 1, 'random')
    assert out.traffic['bytes_exchanged'][0] == 0


def test_all_to_all_refuses_rows_of_no_fixed_number():
  with pytest.raises(ValueError, match='use dispatch.Sorted, or'):
    matrix.run(exchange.AllToAll(), dispatch.Dropless(), 4, 'random')


@pytest.mark.parametrize(
  'exchanger',
  [exchange.Ragged(0), exchange.AllGather(), exchange.Replicated()],
)
def test_spare_choices_are_refused_where_no_device_sees_all_experts(exchanger):
  plan = matrix.plan_of(*(np.zeros((1, 8, 2), t) for t in ('i4', 'f4', bool)))
  run = lambda x_GMD: exchanger.send(
    x_GMD,
    plan._replace(num_spare=1),
    dispatch.Sorted(),
    exchange.ExpertPlacement(8, 1, ('expert',), 4),
  )
  mesh = Mesh(np.array(jax.devices()[:4]), ('expert',))
  with pytest.raises(ValueError, match='num_spare=1 needs exchange.AllToAll'):
    jax.eval_shape(
      jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P()),
      jax.ShapeDtypeStruct((1, 8, 6), jnp.float32),
    )


def test_a_buffer_below_an_even_share_is_refused():
  with pytest.raises(ValueError, match='buffer_factor=0.5 must be at least 1'):
    exchange.Ragged(0.5)


def test_rows_reach_the_expert_that_was_chosen():
  # Expert e multiplies by e + 1, and token m is 10 ** m. Nothing is dropped.
  # The output of token 0 is 0.5 * 1 * 1 + 0.25 * 8 * 1 = 2.5, and that of token
  # 1 is 10 * (2 + 0.5 * 3) = 35.
  def run(x_GMD, expert_GMA, weight_GMA):
    valid_GM = jnp.ones((1, 2), bool)
    plan = matrix.plan_of(expert_GMA, weight_GMA, valid_GM)
    experts = exchange.ExpertPlacement(8, 2, ('expert',), 4)
    exchanger = exchange.AllToAll()
    arrived = exchanger.send(x_GMD, plan, dispatch.Sorted(8.0), experts)
    first = jax.lax.axis_index('expert').astype(jnp.float32) * 2
    factor_EU = (first + jnp.array([1.0, 2.0]))[:, None] * arrived.weight
    return exchanger.collect(arrived.rows * factor_EU[..., None], arrived)

  mesh = Mesh(np.array(jax.devices()[:4]), ('expert',))
  y_GMD = jax.jit(
    jax.shard_map(run, mesh=mesh, in_specs=P('expert'), out_specs=P('expert'))
  )(
    np.tile(np.array([[[1.0], [10.0]]], np.float32), (4, 1, 1)),
    np.tile(np.array([[[0, 7], [1, 2]]], np.int32), (4, 1, 1)),
    np.tile(np.array([[[0.5, 0.25], [1.0, 0.5]]], np.float32), (4, 1, 1)),
  )
  np.testing.assert_allclose(y_GMD[..., 0], [[2.5, 35.0]] * 4)
