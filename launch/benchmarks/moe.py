"""One MoE layer, forward and backward, against others like it."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.benchmarks.pairs import Program, clock, measure
from moe.layers.moe_layer import MoE, TokenInfo
from moe.layers.product import einsum
from moe.parallel import rules, shardings
from moe.parallel.mesh import MeshShape, make_mesh
from moe.routing import dispatch, exchange, gates
from moe.types import Array, PyTree

# Of a layer that fits two CPU cores; a TPU's is in launch/bench_tpu.py.
SIZES = {
  'd_model': 512,
  'd_ff': 1024,
  'experts': 8,
  'top_k': 2,
  'tokens': 8192,
  'group_size': 1024,
  'capacity_factor': 1.25,
  'dtype': 'float32',
}
UNIT = 'forward and backward of one layer'
MESH = MeshShape(data=2, expert=4)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a layer and its input.

  Attributes:
    d_model: D.
    d_ff: F of each expert.
    experts: E.
    top_k: experts per token.
    tokens: in all.
    group_size: M, also the length of a sequence.
    capacity_factor: slots per expert over an even share, where there are any.
    dtype: of activations and of the experts' matrices.
  """

  d_model: int
  d_ff: int
  experts: int
  top_k: int
  tokens: int
  group_size: int
  capacity_factor: float
  dtype: str

  def __post_init__(self):
    if self.tokens % self.group_size:
      raise ValueError(
        f'--tokens={self.tokens} must be a multiple of'
        f' --group_size={self.group_size}: change one of them.'
      )

  def finer(self, factor: int) -> 'Sizes':
    """The same work in so many times as many experts, each so much smaller."""
    return dataclasses.replace(
      self,
      experts=self.experts * factor,
      top_k=self.top_k * factor,
      d_ff=self.d_ff // factor,
    )

  def __str__(self):
    return f'E {self.experts}, k {self.top_k}, d_ff {self.d_ff}'


@dataclasses.dataclass(frozen=True)
class Balanced(gates.TopK):
  """Does all that TopK does, but experts take turns: each gets equal rows."""

  def route(self, inputs, state, keys_G, train):
    """Chooses experts m * k to m * k + k - 1, modulo E, for token m."""
    M, E = inputs.logits_GME.shape[1:]
    token_M = jnp.arange(M, dtype=jnp.int32)
    expert_E = jnp.arange(E, dtype=jnp.int32)
    turn_ME = (expert_E - token_M[:, None] * self.num_active) % E
    # Far above what random logits reach, so that the experts' turn decides.
    raised_ME = jnp.where(turn_ME < self.num_active, 30.0, 0.0)
    logits_GME = inputs.logits_GME + raised_ME
    inputs = inputs._replace(logits_GME=logits_GME)
    return super().route(inputs, state, keys_G, train)


class Layer(NamedTuple):
  """One layer on a mesh, not yet compiled.

  Attributes:
    jitted: (params, x, dy) -> (y, (dparams, dx), dropped share).
    abstract: shapes of its arguments, with shardings.
    init: key -> its arguments, on their devices.
    mesh: its devices.
  """

  jitted: Callable
  abstract: tuple[PyTree, Any, Any]
  init: Callable
  mesh: jax.sharding.Mesh


def make_layer(
  sizes: Sizes,
  dispatcher: type,
  exchanger: type = exchange.AllToAll,
  mesh: jax.sharding.Mesh | None = None,
) -> Layer:
  """The layer with evenly used experts.

  Expert matrices are given in the compute dtype; what the optimizer keeps in
  float32 is no part of the layer.

  Args:
    sizes: of the layer.
    dispatcher: class of the dispatch.
    exchanger: class of the exchange.
    mesh: devices, by default one.

  Raises:
    ValueError: if the sizes do not divide.
  """
  mesh = mesh or make_mesh(MeshShape(), jax.devices()[:1])
  table = rules.table('standard')
  layout = rules.layout(table, mesh)
  dtype = jnp.dtype(sizes.dtype)
  moe = MoE(
    sizes.experts,
    sizes.d_ff,
    top_k=sizes.top_k,
    router=functools.partial(Balanced, renormalize=sizes.top_k > 1),
    dispatch=_configured(dispatcher, sizes),
    exchange=exchanger,
    group_size=sizes.group_size,
    layout=layout,
    dtype=dtype,
  )
  B, T = sizes.tokens // sizes.group_size, sizes.group_size
  zeros_BT = np.zeros((B, T), np.int32)
  info = TokenInfo(zeros_BT, zeros_BT, np.ones((B, T), bool))
  x_BTD = jax.ShapeDtypeStruct((B, T, sizes.d_model), dtype)

  def init_params(key, x_BTD):
    boxed = moe.init(key, x_BTD, info, False)['params']
    cast = lambda w: w.astype(dtype) if w.ndim == 3 else w
    return jax.tree.map(cast, nn.meta.unbox(boxed)), boxed

  def forward(params, x_BTD):
    y_BTD, outputs = moe.apply({'params': params}, x_BTD, info, True)
    # As in training: the balance losses have gradients of their own.
    loss = 0.01 * sum(total for total, _ in outputs.losses.values())
    lost, rows = outputs.metrics['dropped']
    return (y_BTD, loss), lost / rows

  def both_ways(params, x_BTD, dy_BTD):
    outputs, vjp, dropped = jax.vjp(forward, params, x_BTD, has_aux=True)
    return outputs[0], vjp((dy_BTD, jnp.ones(()))), dropped

  with jax.set_mesh(mesh):
    key = jax.eval_shape(lambda: jax.random.key(0))  # runs nothing
    params, boxed = jax.eval_shape(init_params, key, x_BTD)
    logical = jax.tree.map(
      tuple, nn.get_partition_spec(boxed), is_leaf=lambda s: isinstance(s, P)
    )
    places = shardings.param_shardings(params, logical, table, mesh)
    tokens = NamedSharding(mesh, P(layout.batch_axes or None))
    place = (places, tokens, tokens)
    abstract = jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
      (params, x_BTD, x_BTD),
      place,
    )
    jax.eval_shape(both_ways, *abstract)  # every error of sizes comes up here

  def init(key):
    normal = lambda k: jax.random.normal(k, x_BTD.shape, dtype)
    params, x, dy = jax.random.split(key, 3)
    return init_params(params, normal(x))[0], normal(x), normal(dy)

  out = (tokens, place[:2], NamedSharding(mesh, P()))
  jitted = jax.jit(both_ways, out_shardings=out)
  return Layer(jitted, abstract, jax.jit(init, out_shardings=place), mesh)


def make_program(name: str, layer: Layer) -> tuple[Program, Array]:
  """The layer compiled and warm, and its output."""
  with jax.set_mesh(layer.mesh):
    arguments = layer.init(jax.random.key(0))
    compiled = layer.jitted.lower(*arguments).compile()
  y_BTD, _, dropped = compiled(*arguments)
  sample = clock(lambda: compiled(*arguments))
  return Program(name, sample, float(dropped)), y_BTD


def make_products(name: str, sizes: Sizes, slots: int, runs: int) -> Program:
  """The nine matrix products of experts and their gradients, nothing else.

  Args:
    name: for the table.
    sizes: of the layer.
    slots: rows of all experts.
    runs: matrices among which the rows are divided evenly.
  """
  E, S, D, F = runs, slots // runs, sizes.d_model, sizes.d_ff
  x, w, h = (E, S, D), (E, D, F), (E, S, F)

  @jax.jit
  def products(x_ESD, h_ESF, w_EDF, v_EDF, u_EFD):
    def there(x_ESD, h_ESF, w_EDF, v_EDF, u_EFD):
      up = lambda w: einsum('ESD,EDF->ESF', x_ESD, w)
      return up(w_EDF), up(v_EDF), einsum('ESF,EFD->ESD', h_ESF, u_EFD)

    arguments = x_ESD, h_ESF, w_EDF, v_EDF, u_EFD
    outputs, vjp = jax.vjp(there, *arguments)
    return outputs, vjp((h_ESF, h_ESF, x_ESD))

  keys = jax.random.split(jax.random.key(0), 5)
  arguments = [
    jax.random.normal(key, shape, jnp.dtype(sizes.dtype))
    for key, shape in zip(keys, (x, h, w, w, (E, F, D)), strict=True)
  ]
  return Program(name, clock(lambda: products(*arguments)))


def _configured(dispatcher: type, sizes: Sizes) -> Callable:
  if dispatcher.is_dropless:
    return dispatcher
  return functools.partial(dispatcher, capacity_factor=sizes.capacity_factor)


def num_slots(sizes: Sizes, dispatcher: type) -> int:
  """Rows that the experts multiply: with capacity, empty ones as well."""
  room = _configured(dispatcher, sizes)().room(
    sizes.group_size, sizes.top_k, sizes.experts
  )
  if room is None:
    return sizes.tokens * sizes.top_k
  return sizes.tokens // sizes.group_size * sizes.experts * room


def choices(args: argparse.Namespace) -> tuple[type, type]:
  """Classes of dispatch and exchange, by their names."""
  found = []
  # Against products of the same FLOPs, a layer without empty slots.
  default = {'dispatch': 'Dropless' if args.compare == 'dense' else 'Sorted'}
  default['exchange'] = 'AllToAll'
  for flag, module in (('dispatch', dispatch), ('exchange', exchange)):
    name = getattr(args, flag) or default[flag]
    known = [
      n
      for n, c in vars(module).items()
      if dataclasses.is_dataclass(c) and c.__module__ == module.__name__
    ]
    if name not in known:
      raise ValueError(f'--{flag}={name} must be one of {known}.')
    found.append(getattr(module, name))
  return tuple(found)


def compare_mesh(sizes, dispatcher, exchanger):
  """8 devices against 1, on the same cores."""
  devices = jax.devices()
  if len(devices) < 8:
    raise ValueError(
      f'--compare=mesh needs 8 devices, got {len(devices)}: on CPUs set'
      ' JAX_PLATFORMS=cpu, and the command divides them.'
    )
  one = make_layer(sizes, dispatcher, exchanger)
  eight = make_layer(sizes, dispatcher, exchanger, make_mesh(MESH, devices[:8]))
  named = ('1 device', one), ('8 devices, data 2 x expert 4', eight)
  return _programs(named)


def compare_einsum(sizes, dispatcher, exchanger):
  """Sorted against one-hot products."""
  del dispatcher
  return _programs(
    (
      ('one-hot einsum', make_layer(sizes, dispatch.Einsum, exchanger)),
      ('sorted', make_layer(sizes, dispatch.Sorted, exchanger)),
    )
  )


def compare_dropless(sizes, dispatcher, exchanger):
  """Dropless against capacity."""
  return _programs(
    (
      ('capacity', make_layer(sizes, dispatcher, exchanger)),
      ('dropless', make_layer(sizes, dispatch.Dropless, exchanger)),
    )
  )


def compare_fine(sizes, dispatcher, exchanger):
  """The same work in 4 and in 16 times as many experts."""
  finer = [sizes.finer(factor) for factor in (1, 4, 16)]
  return _programs(
    (str(s), make_layer(s, dispatcher, exchanger)) for s in finer
  )


def compare_parts(sizes, dispatcher, exchanger):
  """The layer against the matrix products of its experts alone.

  With capacity the experts multiply empty slots too. These products count as
  products in the first row, and as waste in the second.
  """
  rows = sizes.tokens * sizes.top_k
  slots = num_slots(sizes, dispatcher)
  E = sizes.experts
  products = [make_products('expert products, all slots', sizes, slots, E)]
  if slots != rows:
    needed = 'expert products, rows needed'
    products.append(make_products(needed, sizes, rows, E))
  programs, _ = compare_none(sizes, dispatcher, exchanger)
  return [*products, *programs], {'rows': rows, 'slots': slots}


def compare_dense(sizes, dispatcher, exchanger):
  """The layer against plain products of equally many FLOPs.

  FLOPs of the rows needed: where capacity leaves slots empty, what they cost is
  the layer's loss, and at 1.25 the ratio can't exceed 0.8.
  """
  rows = sizes.tokens * sizes.top_k
  products = make_products('dense products', sizes, rows, 1)
  programs, extra = compare_none(sizes, dispatcher, exchanger)
  slots = num_slots(sizes, dispatcher)
  return [products, *programs], {
    **extra, 'rows': rows, 'slots': slots, 'most_possible': rows / slots
  }  # fmt: skip


def compare_none(sizes, dispatcher, exchanger):
  """The layer alone."""
  return _programs([(
    str(sizes), make_layer(sizes, dispatcher, exchanger)
  )])  # fmt: skip


def _programs(named) -> tuple[list[Program], dict[str, float]]:
  """Compiles each; how far the outputs of the last are from the first's."""
  programs, outputs = [], []
  for name, layer in named:
    program, y_BTD = make_program(name, layer)
    programs.append(program)
    outputs.append(np.asarray(y_BTD, np.float32))
  if len(programs) != 2:
    return programs, {}
  difference = np.abs(outputs[1] - outputs[0]).max()
  return programs, {'largest_difference': float(difference)}


COMPARISONS = {
  None: compare_none,
  'mesh': compare_mesh,
  'einsum': compare_einsum,
  'dropless': compare_dropless,
  'parts': compare_parts,
  'fine': compare_fine,
  'dense': compare_dense,
}


def sizes_of(args: argparse.Namespace, defaults: dict[str, Any]) -> Sizes:
  """Sizes by flags, else by default."""
  given = {name: getattr(args, name) for name in defaults}
  return Sizes(
    **{
      name: defaults[name] if value is None else value
      for name, value in given.items()
    }
  )


def _shares(report: dict[str, Any]) -> dict[str, float]:
  """Shares of the layer's time that no product, or no needed product, takes."""
  needed, layer = report['runs'][-2:]
  return {
    'share_beyond_products': 1 - report['ratio'],
    'share_beyond_needed_products': 1 - needed['seconds'] / layer['seconds'],
  }


def moe(args: argparse.Namespace) -> dict[str, Any]:
  """The verb `moe` on devices that there are."""
  sizes = sizes_of(args, SIZES)
  classes = choices(args)
  programs, extra = COMPARISONS[args.compare](sizes, *classes)
  is_speed = args.compare in ('einsum', 'parts', 'dense')
  report = measure(programs, args.rounds, UNIT, sizes.tokens, is_speed)
  if args.compare == 'parts':
    extra |= _shares(report)
  device = jax.devices()[0].device_kind
  shown = {
    'sizes': dataclasses.asdict(sizes),
    'dispatch': classes[0].__name__,
    'exchange': classes[1].__name__,
    'device': device,
  }
  if args.compare == 'dense' or not args.compare:
    # Two FLOPs for each weight of three matrices, and twice that backwards.
    weights = 3 * sizes.d_model * sizes.d_ff
    flops = 6 * weights * sizes.tokens * sizes.top_k
    extra['tflops_per_second'] = flops / report['seconds'] / 1e12
  return {**report, **extra, **shown}
