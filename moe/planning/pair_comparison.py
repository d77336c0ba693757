"""Times the pair track of a folding block against AlphaFold's algorithm.

AlphaFold updates pairs by one direction of triangle multiplication, then by the
other, and makes each factor, gate, query, key and value by a product of its own
(Jumper et al. 2021, supplement 1.6,
https://doi.org/10.1038/s41586-021-03819-2). `moe.layers.pairs` lets both
directions read the same pairs, has the channels of factors first, and writes
out the gradients of its linear layers and norms.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe import bounds
from moe.evaluate.timing import Timed, clock, measure
from moe.layers import pairs
from moe.models import functional
from moe.types import Array, PyTree

# Number of residues, width of pairs, and heads of triangle attention. The last
# two are those of models/fold_tiny.gin.
SIZES = {'length': 128, 'width': 32, 'heads': 0}
_HEAD_DIM, _FACTOR = 32, 2
_SUMS = {
  pairs.OUTGOING: 'BIkC,BJkC->BIJC',
  pairs.INCOMING: 'BkIC,BkJC->BIJC',
}
_FACTORS = ('one', 'two', 'one_gate', 'two_gate', 'gate')
_PROJECTIONS = ('query', 'key', 'value', 'gate')


def layers_of(heads: int) -> dict[str, Any]:
  """Our layers of pairs by name, in their order in a folding block."""
  attention = {
    f'attention_{i}': pairs.TriangleAttention(bool(i), heads, _HEAD_DIM)
    for i in range(2 if heads else 0)
  }
  return {
    'triangles': pairs.TriangleMultiplication(),
    **attention,
    'transition': pairs.PairTransition(_FACTOR),
  }


def ours(
  layers: dict[str, Any], params: PyTree, pair_BIJZ: Array, valid_BI: Array
) -> Array:
  """Applies our layers; each adds its update to the pairs."""
  for name, layer in layers.items():
    more = () if name == 'transition' else (valid_BI,)
    pair_BIJZ += layer.apply({'params': params[name]}, pair_BIJZ, *more)
  return pair_BIJZ


def separated(params: PyTree) -> PyTree:
  """Divides the parameters of our layers into those of AlphaFold's layers."""
  found = {'transition': params['transition']}
  triangles = params['triangles']
  for direction in (pairs.OUTGOING, pairs.INCOMING):
    found[direction] = {'norm_in': triangles['norm'], **triangles[direction]}
  for name in (n for n in params if n.startswith('attention')):
    both = params[name]['attention']
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    parts = [
      [flat(part) for part in np.moveaxis(x, -3, 0)]
      for x in (both['projections']['kernel'], both['projections']['bias'])
    ]
    found[name] = {
      'norm': params[name]['norm'],
      'bias': params[name]['bias'],
      'out': both['out'],
      **_named(_PROJECTIONS, *parts),
    }
  return found


def _named(names: tuple[str, ...], kernels: list, biases: list) -> PyTree:
  return {
    name: {'kernel': kernel, 'bias': bias}
    for name, kernel, bias in zip(names, kernels, biases, strict=True)
  }


def alphafold(
  heads: int, params: PyTree, pair_BIJZ: Array, valid_BI: Array
) -> Array:
  """Applies AlphaFold's layers, with the result of `separated`."""
  for direction in (pairs.OUTGOING, pairs.INCOMING):
    pair_BIJZ += multiplication(
      direction, params[direction], pair_BIJZ, valid_BI
    )
  for i in range(2 if heads else 0):
    one = params[f'attention_{i}']
    turn = lambda x, i=i: jnp.swapaxes(x, 1, 2) if i else x
    pair_BIJZ += turn(_attention(heads, one, turn(pair_BIJZ), valid_BI))
  transition = pairs.PairTransition(_FACTOR)
  return pair_BIJZ + transition.apply(
    {'params': params['transition']}, pair_BIJZ
  )


def multiplication(
  direction: str, params: PyTree, pair_BIJZ: Array, valid_BI: Array
) -> Array:
  """The update of AlphaFold's Algorithm 11 or 12, with separate projections."""
  x = _norm(params['norm_in'], pair_BIJZ)
  one, two, one_gate, two_gate, gate = (
    _linear(params[name], x) for name in _FACTORS
  )
  is_pair = (valid_BI[:, :, None] & valid_BI[:, None])[..., None]
  one = jnp.where(is_pair, one * jax.nn.sigmoid(one_gate), 0)
  two = jnp.where(is_pair, two * jax.nn.sigmoid(two_gate), 0)
  y = _norm(params['norm'], jnp.einsum(_SUMS[direction], one, two))
  return _linear(params['out'], y) * jax.nn.sigmoid(gate)


def _attention(
  heads: int, params: PyTree, pair_BIJZ: Array, valid_BI: Array
) -> Array:
  """The update of Algorithm 13, with a product for each of `_PROJECTIONS`."""
  x = _norm(params['norm'], pair_BIJZ)
  bias = jnp.moveaxis(_linear(params['bias'], x), -1, -3)[:, None]
  query, key, value, gate = (
    _linear(params[name], x).reshape(*x.shape[:-1], heads, -1)
    for name in _PROJECTIONS
  )
  scores = jnp.einsum('BRINH,BRJNH->BRNIJ', query, key)
  scores = scores / math.sqrt(query.shape[-1]) + bias
  scores = jnp.where(valid_BI[:, None, None, None], scores, -1e9)
  y = jnp.einsum('BRNIJ,BRJNH->BRINH', jax.nn.softmax(scores), value)
  y = (y * jax.nn.sigmoid(gate)).reshape(*x.shape[:-1], -1)
  return _linear(params['out'], y)


def _linear(params: PyTree, x: Array) -> Array:
  return jnp.dot(x, params['kernel'], precision='highest') + params['bias']


def _norm(params: PyTree, x: Array) -> Array:
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  return x / jnp.sqrt(variance + 1e-5) * params['scale'] + params['bias']


def drawn(layers: dict[str, Any], pair: Array, valid: Array) -> PyTree:
  """Random parameters of our layers; none is 0, unlike initial parameters."""
  made = {}
  for name, layer in layers.items():
    more = () if name == 'transition' else (valid,)

    def init(layer: Any = layer, more: tuple = more) -> PyTree:
      variables = layer.init(jax.random.key(0), pair, *more)
      return functional.unboxed(variables)[0]

    made[name] = jax.eval_shape(init)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), made
  )


def _with_gradients(apply: Callable) -> Callable:
  """Jits the forward and backward pass of a function."""

  def loss(params: PyTree, pair: Array, valid: Array) -> Array:
    return jnp.sum(jnp.square(apply(params, pair, valid)))

  return jax.jit(jax.grad(loss, argnums=(0, 1)))


def compare(args: argparse.Namespace) -> dict[str, Any]:
  """The report of the subcommand `pairs`.

  Neither of the two programs rematerialises.

  Args:
    args: flags `length`, `width`, `heads` and `rounds`.
  """
  sizes = {name: getattr(args, name) for name in SIZES}
  for name, least in (('length', 2), ('width', 2), ('heads', 0)):
    bounds.at_least(least, f'--{name}', sizes[name], 'a size of the pair track')
  length, width, heads = sizes.values()
  rng = np.random.default_rng(0)
  pair = jnp.asarray(rng.normal(size=(1, length, length, width)), jnp.float32)
  valid = jnp.ones((1, length), bool)
  layers = layers_of(heads)
  params = drawn(layers, pair, valid)
  programs = (
    (
      'AlphaFold, separate projections',
      functools.partial(alphafold, heads),
      separated(params),
    ),
    ('ours', functools.partial(ours, layers), params),
  )

  def timed(name: str, apply: Callable, params: PyTree) -> Timed:
    step = _with_gradients(apply)
    on_device = jax.tree.map(jnp.asarray, params)
    return Timed(name, clock(lambda: step(on_device, pair, valid)))

  report = measure(
    [timed(*program) for program in programs],
    args.rounds,
    'forward and backward of the pair track of one block',
  )
  return report | sizes | {'device': str(jax.devices()[0].device_kind)}
