"""Runs combinations of dispatch, exchange, number of devices and plan.

`python -m tests.routing.matrix` runs those on four devices, and prints three
tables: the outcomes, the mesh axes that tests combine, and the refused
combinations.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe.routing import dispatch, exchange
from moe.routing.grouped import grouped_matmul
from moe.routing.plan import RoutingPlan
from moe.routing.token_choice import rows_of_choices
from tests.routing import oracle

G, M, A, E, D = 8, 8, 3, 8, 6

DISPATCHES = {
  'Einsum': dispatch.Einsum(1.0),
  'Sorted': dispatch.Sorted(1.0),
  'Sorted by probability': dispatch.Sorted(1.0, 'probability'),
  'Dropless': dispatch.Dropless(),
}
EXCHANGES = {
  'AllToAll': exchange.AllToAll(),
  'Ragged, bounded': exchange.Ragged(1.0),
  'Ragged, worst case': exchange.Ragged(0),
  'AllGather': exchange.AllGather(),
  'Replicated, decoding': exchange.Replicated(),
}
DEVICES = (1, 2, 4, 8)
# Name -> function: random state -> experts [G, M, A]. A token has A different
# experts.
PLANS = {
  'random': lambda r: r.rand(G, M, E).argsort(-1)[..., :A],
  'all to one': lambda r: np.broadcast_to(np.arange(A), (G, M, A)),
  'empty experts': lambda r: 2 * r.rand(G, M, E // 2).argsort(-1)[..., :A],
}
VALID_GM = np.arange(M) < np.array([[M], [M - 3], [M], [M - 1]] * 2)


class Outcome(NamedTuple):
  """The result of one combination: outputs, counts and gradients."""

  y_GMD: np.ndarray
  experts_GM: np.ndarray
  traffic: dict
  gradients: tuple


def linear(w_EDD, rows, weight, count_E):
  """Applies linear experts to rows [E, U, D], or to rows sorted by expert."""
  rows = rows * weight[..., None]
  if count_E is None:
    return jnp.einsum('EUD,EDF->EUF', rows, w_EDD)
  return grouped_matmul(rows, w_EDD, count_E)


def plan_of(expert_GMA, weight_GMA, valid_GM):
  """Makes a plan in which tokens choose these experts with these weights."""
  rows = rows_of_choices(expert_GMA, weight_GMA, valid_GM)
  return RoutingPlan(*rows, {}, {})


def uneven(y_GMD):
  """Computes a loss in which each entry of y has a different factor."""
  scale = jnp.arange(y_GMD.size, dtype=jnp.float32).reshape(y_GMD.shape)
  return jnp.sum(jnp.sin(scale) * y_GMD)


def layer(exchanger, dispatcher, num_devices, counts_experts=True):
  """Makes a function of `arguments`.

  It returns (outputs, how many experts see each token, traffic). Without
  `counts_experts` the second result is None.
  """
  axes = ('expert',) if num_devices > 1 else ()

  def local(x_GMD, w_EDD, weight_GMA, expert_GMA, valid_GM):
    experts = exchange.ExpertPlacement(E, A, axes, num_devices)
    plan = plan_of(expert_GMA, weight_GMA, valid_GM)
    arrived = exchanger.send(x_GMD, plan, dispatcher, experts)
    out = linear(w_EDD, arrived.rows, arrived.weight, arrived.count_E)
    y_GMD, traffic = exchanger.collect(out, arrived), arrived.traffic
    if axes and not isinstance(exchanger, exchange.Replicated):
      traffic = jax.lax.psum(traffic, axes)
    experts_GM = None
    if counts_experts:
      experts_GM = exchange.experts_of_tokens(exchanger, arrived)
    return y_GMD, experts_GM, traffic

  if axes:
    mesh = Mesh(np.array(jax.devices()[:num_devices]), axes)
    is_whole = isinstance(exchanger, exchange.Replicated)
    tokens = P() if is_whole else P('expert')
    local = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(tokens, P('expert'), tokens, tokens, tokens),
      out_specs=(tokens, tokens, P()),
      check_vma=False,
    )
  return local


@functools.cache
def program(exchanger, dispatcher, num_devices):
  """Makes a jitted function: arguments -> ((loss, outputs), gradients).

  The outputs are those of `layer`. The gradients are with respect to tokens,
  expert matrices and weights.
  """
  run = layer(exchanger, dispatcher, num_devices)

  def loss(*args):
    outputs = run(*args)
    return uneven(outputs[0]), outputs

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@functools.cache
def arguments(plan):
  """Returns (tokens, expert matrices, weights, choices, valid) of a plan."""
  random = np.random.RandomState(0)
  shapes = ((G, M, D), (E, D, D), (G, M, A))
  arrays = [random.randn(*shape).astype(np.float32) for shape in shapes]
  return *arrays, PLANS[plan](random).astype(np.int32), VALID_GM


def run(exchanger, dispatcher, num_devices, plan) -> Outcome:
  """Runs one combination.

  Raises:
    ValueError: if dispatch and exchange do not combine.
  """
  step = program(exchanger, dispatcher, num_devices)
  (_, outputs), gradients = step(*arguments(plan))
  return jax.device_get(Outcome(*outputs, gradients))


def limits(exchanger, dispatcher, n):
  """The argument `limits` of `oracle.pooled_rows`, for `exchange.Ragged`."""
  tokens = G * M // n
  visits = n * tokens
  if exchanger.buffer_factor:
    share = exchanger.buffer_factor * tokens * min(A, n)
    visits = min(visits, math.ceil(share) + n)
  if not dispatcher.is_dropless:
    return visits, dispatcher.capacity(n * tokens, A, E), None
  rows = visits * min(A, E // n)
  if exchanger.buffer_factor:
    rows = min(rows, math.ceil(exchanger.buffer_factor * tokens * A))
  return visits, None, rows


def kept_rows(exchanger, dispatcher, n, plan):
  """Bool [G, R]: whether a row is not dropped, computed in plain Python."""
  _, _, weight_GMA, expert_GMA, valid_GM = arguments(plan)
  plan = jax.tree.map(np.asarray, plan_of(expert_GMA, weight_GMA, valid_GM))
  priority = getattr(dispatcher, 'priority', 'position')
  if isinstance(exchanger, exchange.Ragged) and n > 1:
    bounds = limits(exchanger, dispatcher, n)
    return oracle.pooled_rows(plan, E, n, bounds, priority)
  if dispatcher.is_dropless:
    return plan.valid_GR
  return oracle.kept_rows(plan, E, dispatcher.capacity(M, A, E), priority)


@functools.cache
def oracle_program(plan):
  """Jits the reference, which computes every expert on every token."""
  x_GMD, w_EDD, weight_GMA, expert_GMA, valid_GM = arguments(plan)
  fixed = jax.tree.map(np.asarray, plan_of(expert_GMA, weight_GMA, valid_GM))

  def loss(x_GMD, w_EDD, weight_GMA, kept_GR):
    # The choices in `fixed` are NumPy arrays, since the oracle needs concrete
    # numbers. Of the plan, only the weights are traced.
    weight_GR = plan_of(expert_GMA, weight_GMA, valid_GM).weight_GR
    fn = lambda e, x_GMD: jnp.einsum('GMD,DF->GMF', x_GMD, w_EDD[e])
    masked = fixed._replace(weight_GR=weight_GR)
    y_GMD = oracle.mixture(x_GMD, masked, kept_GR, fn, E)
    return uneven(y_GMD), y_GMD

  run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  return functools.partial(run, x_GMD, w_EDD, weight_GMA)


def expected(exchanger, dispatcher, n, plan) -> Outcome:
  """Computes the result of one combination with the oracle."""
  kept_GR = kept_rows(exchanger, dispatcher, n, plan)
  (_, y_GMD), gradients = oracle_program(plan)(kept_GR)
  rows = A * VALID_GM.sum()
  lost = rows - kept_GR.sum()
  is_pooled = isinstance(exchanger, exchange.Ragged) and n > 1
  traffic = {
    'dropped': (lost, rows),
    'dropped_receiver': (lost if is_pooled else 0, rows),
  }
  _, _, weight_GMA, expert_GMA, valid_GM = arguments(plan)
  token_GR = np.asarray(plan_of(expert_GMA, weight_GMA, valid_GM).token_GR)
  experts_GM = np.zeros((G, M))
  np.add.at(experts_GM, (np.arange(G)[:, None], token_GR), kept_GR)
  return jax.device_get(Outcome(y_GMD, experts_GM, traffic, gradients))


def table() -> str:
  """Makes the table of dispatch and exchange, on four devices."""
  lines = [
    '| dispatch | ' + ' | '.join(EXCHANGES) + ' |',
    '|---' * (len(EXCHANGES) + 1) + '|',
  ]
  for name, dispatcher in DISPATCHES.items():
    cells = []
    for exchanger in EXCHANGES.values():
      try:
        lost = [
          float(run(exchanger, dispatcher, 4, plan).traffic['dropped'][0])
          for plan in PLANS
        ]
      except ValueError:
        cells.append('refused')
        continue
      cells.append('yes, drops' if any(lost) else 'yes, drops nothing')
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def axes_table() -> str:
  """Makes the table of mesh axes that full-stack tests use together."""
  from tests.layers import test_full_stack as stacks

  pairs = set()
  for *_, mesh in stacks.STACKS:
    sizes = dataclasses.asdict(stacks.MESHES[mesh])
    used = [axis for axis, size in sizes.items() if size > 1]
    pairs |= set(itertools.product(used, used))
  names = ('expert', 'fsdp', 'data', 'model', 'context')
  lines = ['| | ' + ' | '.join(names) + ' |', '|---' * (len(names) + 1) + '|']
  for one in names:
    cells = ['yes' if (one, other) in pairs else 'no' for other in names]
    lines.append(f'| {one} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def refused_table() -> str:
  """Makes the table of combinations that building a layer refuses, and why."""
  from tests.layers import test_full_stack as stacks

  lines = ['| refused | because |', '|---|---|']
  for name in stacks.REFUSED:
    lines.append(f'| {name} | {stacks.refusal(name)} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  print(table(), axes_table(), refused_table(), sep='\n\n')
