"""Benchmarked programs: an MoE layer, and its experts' products alone."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe.evaluate.timing import Timed, clock
from moe.layers.moe_layer import MoE, TokenInfo
from moe.layers.product import einsum
from moe.models import functional
from moe.parallel import rules, shardings
from moe.parallel.mesh import MeshShape, make_mesh
from moe.routing import exchange, gates
from moe.routing.plan import RouterInputs, RoutingPlan
from moe.types import Array, Layout, PyTree

UNIT = 'forward and backward of one layer'


@dataclasses.dataclass(frozen=True)
class LayerSizes:
  """Sizes of an MoE layer and of its input.

  Attributes:
    d_model: D, the width of the model.
    d_ff: F, the width of each expert.
    experts: E, the number of experts.
    top_k: experts per token.
    tokens: total number of tokens.
    group_size: M, tokens per routing group; a sequence has the same length.
    capacity_factor: slots per expert divided by an even share of the rows;
      dropless dispatch ignores it.
    dtype: dtype of the activations and of the experts' matrices.
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

  def finer(self, factor: int) -> 'LayerSizes':
    """Sizes with equal FLOPs: `factor` times as many, narrower experts."""
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
  """A TopK router that changes logits so that all experts get equal loads."""

  def route(
    self, inputs: RouterInputs, state: PyTree, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Chooses experts m * k to m * k + k - 1, modulo E, for token m."""
    M, E = inputs.logits_GME.shape[1:]
    token_M = jnp.arange(M, dtype=jnp.int32)
    expert_E = jnp.arange(E, dtype=jnp.int32)
    turn_ME = (expert_E - token_M[:, None] * self.num_active) % E
    # The random logits are far below 30, so the experts with raised logits are
    # chosen.
    raised_ME = jnp.where(turn_ME < self.num_active, 30.0, 0.0)
    logits_GME = inputs.logits_GME + raised_ME
    inputs = inputs._replace(logits_GME=logits_GME)
    return super().route(inputs, state, keys_G, train)


class JittedLayer(NamedTuple):
  """A jitted function of one layer and its gradients, before compilation.

  Attributes:
    jitted: (params, x, dy) -> (y, (dparams, dx), dropped share).
    abstract: shapes and shardings of the arguments of `jitted`.
    init: random key -> arguments of `jitted`, on their devices.
    mesh: mesh of the devices.
  """

  jitted: Callable
  abstract: tuple[PyTree, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
  init: Callable
  mesh: jax.sharding.Mesh


def make_layer(
  sizes: LayerSizes,
  dispatcher: type,
  exchanger: type = exchange.AllToAll,
  mesh: jax.sharding.Mesh | None = None,
) -> JittedLayer:
  """Makes a layer in which all experts have equal loads.

  Expert matrices have the compute dtype, since converting float32 parameters is
  not a part of the layer.

  Args:
    sizes: sizes of the layer.
    dispatcher: class of the dispatch.
    exchanger: class of the exchange.
    mesh: mesh of the devices; None for one device.

  Raises:
    ValueError: if a size is not divisible by its mesh axes.
  """
  mesh = mesh or make_mesh(MeshShape(), jax.devices()[:1])
  table = rules.table('standard')
  layout = rules.layout(table, mesh)
  dtype = jnp.dtype(sizes.dtype)
  moe = _layer(sizes, dispatcher, exchanger, layout)
  B, T = sizes.tokens // sizes.group_size, sizes.group_size
  zeros_BT = np.zeros((B, T), np.int32)
  info = TokenInfo(zeros_BT, zeros_BT, np.ones((B, T), bool))
  x_BTD = jax.ShapeDtypeStruct((B, T, sizes.d_model), dtype)

  def init_boxed(key: Array, x_BTD: Array) -> PyTree:
    return moe.init(key, x_BTD, info, False)

  def init_params(key: Array, x_BTD: Array) -> PyTree:
    params, _, _ = functional.unboxed(init_boxed(key, x_BTD))
    cast = lambda w: w.astype(dtype) if w.ndim == 3 else w
    return jax.tree.map(cast, params)

  def forward(params: PyTree, x_BTD: Array) -> tuple:
    y_BTD, outputs = moe.apply({'params': params}, x_BTD, info, True)
    # Training also differentiates the balance losses, so this benchmark does,
    # too.
    loss = 0.01 * sum(total for total, _ in outputs.losses.values())
    lost, rows = outputs.metrics['dropped']
    return (y_BTD, loss), lost / rows

  def both_ways(params: PyTree, x_BTD: Array, dy_BTD: Array) -> tuple:
    outputs, vjp, dropped = jax.vjp(forward, params, x_BTD, has_aux=True)
    return outputs[0], vjp((dy_BTD, jnp.ones(()))), dropped

  with jax.set_mesh(mesh):
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(init_params, key, x_BTD)
    boxed = jax.eval_shape(init_boxed, key, x_BTD)
    _, _, logical = functional.unboxed(boxed)
    places = shardings.param_shardings(params, logical, table, mesh)
    tokens = NamedSharding(mesh, P(layout.batch_axes or None))
    place = (places, tokens, tokens)
    abstract = jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
      (params, x_BTD, x_BTD),
      place,
    )
    jax.eval_shape(both_ways, *abstract)  # This raises errors of wrong sizes.

  def init(key: Array) -> tuple[PyTree, Array, Array]:
    normal = lambda k: jax.random.normal(k, x_BTD.shape, dtype)
    params, x, dy = jax.random.split(key, 3)
    return init_params(params, normal(x)), normal(x), normal(dy)

  out = (tokens, place[:2], NamedSharding(mesh, P()))
  jitted = jax.jit(both_ways, out_shardings=out)
  return JittedLayer(jitted, abstract, jax.jit(init, out_shardings=place), mesh)


def _layer(
  sizes: LayerSizes, dispatcher: type, exchanger: type, layout: Layout
) -> MoE:
  return MoE(
    sizes.experts,
    sizes.d_ff,
    top_k=sizes.top_k,
    router=functools.partial(Balanced, renormalize=sizes.top_k > 1),
    dispatch=_configured(dispatcher, sizes),
    exchange=exchanger,
    group_size=sizes.group_size,
    layout=layout,
    dtype=jnp.dtype(sizes.dtype),
  )


def _configured(dispatcher: type, sizes: LayerSizes) -> Callable:
  if dispatcher.is_dropless:
    return dispatcher
  return functools.partial(dispatcher, capacity_factor=sizes.capacity_factor)


def num_slots(sizes: LayerSizes, dispatcher: type) -> int:
  """Number of rows that the experts multiply, including empty slots."""
  capacity = _configured(dispatcher, sizes)().capacity(
    sizes.group_size, sizes.top_k, sizes.experts
  )
  if capacity is None:
    return sizes.tokens * sizes.top_k
  return sizes.tokens // sizes.group_size * sizes.experts * capacity


def timed_layer(name: str, layer: JittedLayer) -> tuple[Timed, Array]:
  """Compiles and runs a layer; returns (`Timed`, output [B, T, D])."""
  with jax.set_mesh(layer.mesh):
    arguments = layer.init(jax.random.key(0))
    compiled = layer.jitted.lower(*arguments).compile()
  y_BTD, _, dropped = compiled(*arguments)
  sample = clock(lambda: compiled(*arguments))
  return Timed(name, sample, float(dropped)), y_BTD


def timed_products(name: str, sizes: LayerSizes, rows: int, runs: int) -> Timed:
  """Matrix products of experts alone: three forward, and six for gradients.

  Args:
    name: name in the table.
    sizes: sizes of the layer.
    rows: number of rows of all experts together.
    runs: number of experts; each gets an equal share of the rows.
  """
  E, S, D, F = runs, rows // runs, sizes.d_model, sizes.d_ff
  x, w, h = (E, S, D), (E, D, F), (E, S, F)

  def forward(
    x_ESD: Array, h_ESF: Array, w_EDF: Array, v_EDF: Array, u_EFD: Array
  ) -> tuple[Array, Array, Array]:
    up = lambda w: einsum('ESD,EDF->ESF', x_ESD, w)
    return up(w_EDF), up(v_EDF), einsum('ESF,EFD->ESD', h_ESF, u_EFD)

  @jax.jit
  def products(x_ESD: Array, h_ESF: Array, *weights: Array) -> tuple:
    outputs, vjp = jax.vjp(forward, x_ESD, h_ESF, *weights)
    return outputs, vjp((h_ESF, h_ESF, x_ESD))

  keys = jax.random.split(jax.random.key(0), 5)
  arguments = [
    jax.random.normal(key, shape, jnp.dtype(sizes.dtype))
    for key, shape in zip(keys, (x, h, w, w, (E, F, D)), strict=True)
  ]
  return Timed(name, clock(lambda: products(*arguments)))
