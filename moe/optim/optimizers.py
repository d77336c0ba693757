"""Optimizers: AdamW, Muon or Adafactor, with clipping and frozen parameters."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from moe import bounds
from moe.optim import groups as groups_lib
from moe.optim import moments
from moe.optim import muon as muon_lib
from moe.optim.groups import Factors, FactorsOf, Group
from moe.optim.matrices import matrix_of
from moe.optim.storage import FLOAT32, Storage, is_kept, names, to_float32
from moe.types import PyTree


class Optimizer(NamedTuple):
  """Functions that turn gradients into updates, and the formats of arrays.

  Attributes:
    init: params -> state.
    update: (grads, state, params) -> (updates, state); computes in float32 for
      any dtypes of gradients and parameters.
    storage: formats of parameters and gradients.
  """

  init: Callable[[PyTree], optax.OptState]
  update: Callable[..., tuple[PyTree, optax.OptState]]
  storage: Storage


def _decayed(params: PyTree) -> PyTree:
  """A tree of bools: whether each parameter has weight decay."""
  return jax.tree.map(groups_lib.is_decayed, names(params))


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
  return matrix_of(name, shape) is not None


def _check_adam(
  b1: float, b2: float, weight_decay: float, moment_dtype: str
) -> None:
  bounds.within('b1', b1, 'decay of the first moment', least=0, below=1)
  bounds.within('b2', b2, 'decay of the second moment', least=0, below=1)
  taken_off = 'part of a matrix taken off, 0 for none'
  bounds.within('weight_decay', weight_decay, taken_off, least=0)
  bounds.one_of('moment_dtype', moment_dtype, moments.DTYPES)


def _adam(
  b1: float, b2: float, eps: float, moment_dtype: str
) -> optax.GradientTransformation:
  """Adam's direction; moments stay float32 where `is_kept` is true."""
  whole = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)
  if moment_dtype == 'float32':
    return whole

  def labels(params: PyTree) -> PyTree:
    return jax.tree.map(
      lambda name: 'kept' if is_kept(name) else 'stored', names(params)
    )

  direction = {
    'kept': whole,
    'stored': moments.scale_by_adam(b1, b2, eps, moment_dtype),
  }
  return optax.partition(direction, labels)


def _scheduled(
  direction: optax.GradientTransformation,
  schedule: optax.Schedule,
  weight_decay: float,
  factors: Callable[[str], Factors] | None,
) -> optax.GradientTransformation:
  """Adds weight decay to a direction, and multiplies by the learning rate."""
  rate = optax.scale_by_learning_rate(schedule)
  if factors is None:
    decay = optax.add_decayed_weights(weight_decay, _decayed)
    return optax.chain(direction, decay, rate)

  def decay_of(name: str) -> float:
    found = factors(name)
    # `_scaled` multiplies the decay by `rate_alone`, too, so we divide by it.
    decay = found.decay * (1 / found.rate_alone)
    return weight_decay * decay * groups_lib.is_decayed(name)

  decay = groups_lib.decay(decay_of)
  return optax.chain(direction, decay, rate, _scaled(factors))


def _scaled(
  factors: Callable[[str], Factors],
) -> optax.GradientTransformation:
  """Multiplies updates by both factors of the learning rate."""

  def rate_of(name: str) -> float:
    found = factors(name)
    return found.rate * found.rate_alone

  return groups_lib.scale(rate_of)


def _elementwise(factors: FactorsOf | None) -> Callable | None:
  """A function from a path to factors, for updates that are not orthogonal."""
  return factors and (lambda name: factors(name, False))


def adamw(
  schedule: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  moment_dtype: str = 'float32',
  factors: FactorsOf | None = None,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019).

  Args:
    schedule: learning rate by step.
    b1: decay of the first moment, at least 0 and below 1.
    b2: decay of the second moment, at least 0 and below 1.
    eps: added to the root of the second moment, above 0.
    weight_decay: at least 0; each step subtracts weight_decay x learning rate x
      parameter. Routers, norm scales and biases have no decay.
    moment_dtype: 'float32', 'bfloat16' or 'int8'; the moments of routers, norm
      scales and biases are always float32.
    factors: factors of learning rate and weight decay by path; may be None.

  Raises:
    ValueError: for a number out of range, and for another `moment_dtype`.
  """
  _check_adam(b1, b2, weight_decay, moment_dtype)
  bounds.within('eps', eps, 'added to a root that may be 0', above=0)
  direction = _adam(b1, b2, eps, moment_dtype)
  return _scheduled(direction, schedule, weight_decay, _elementwise(factors))


def muon(
  schedule: optax.Schedule,
  beta: float = 0.95,
  b1: float = 0.9,
  b2: float = 0.95,
  weight_decay: float = 0.1,
  moment_dtype: str = 'float32',
  factors: FactorsOf | None = None,
) -> optax.GradientTransformation:
  """Muon (Jordan 2024) for matrices, AdamW for all other parameters.

  Muon updates the matrices that `moe.optim.matrices` lists: those of attention
  layers, feed-forward layers and each single expert. AdamW updates tables,
  routers, norm scales and so on.

  Args:
    schedule: learning rate by step, for both optimizers.
    beta: decay of Muon's momentum.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    weight_decay: as in `adamw`, for both optimizers.
    moment_dtype: 'float32', 'bfloat16' or 'int8', as in `adamw`.
    factors: factors of learning rate and weight decay by path; may be None.

  Raises:
    ValueError: for a number out of range, or another `moment_dtype`.
  """
  bounds.within('beta', beta, 'decay of the momentum', least=0, below=1)
  _check_adam(b1, b2, weight_decay, moment_dtype)

  def labels(params: PyTree) -> PyTree:
    label = lambda name, p: 'matrix' if _is_matrix(name, p.shape) else 'other'
    return jax.tree.map(label, names(params), params)

  def chain(direction: optax.GradientTransformation, is_orthogonal: bool):
    of = factors and (lambda name: factors(name, is_orthogonal))
    return _scheduled(direction, schedule, weight_decay, of)

  made = {
    'matrix': chain(muon_lib.scale_by_muon(beta, moment_dtype), True),
    'other': chain(_adam(b1, b2, 1e-8, moment_dtype), False),
  }
  return optax.partition(made, labels)


def adafactor(
  schedule: optax.Schedule,
  decay_rate: float = 0.8,
  clipping_threshold: float = 1.0,
  momentum: float | None = None,
  weight_decay: float | None = None,
  factors: FactorsOf | None = None,
) -> optax.GradientTransformation:
  """Adafactor (Shazeer & Stern 2018), with second moments per row and column.

  Args:
    schedule: learning rate by step.
    decay_rate: exponent of the second moments' decay.
    clipping_threshold: largest root-mean-square of one array's update, before
      it is multiplied by the learning rate.
    momentum: decay of the momentum of updates; None for no momentum, which
      saves memory.
    weight_decay: each step subtracts this fraction of each parameter except
      routers, norm scales and biases. Unlike in AdamW, it does not depend on
      the learning rate. None for no decay.
    factors: factors of learning rate and weight decay by path; may be None.

  Raises:
    ValueError: for a number out of range.
  """
  exponent = "exponent of the second moments' decay"
  bounds.within('decay_rate', decay_rate, exponent, above=0, most=1)
  rms = 'largest root-mean-square of an update'
  bounds.within('clipping_threshold', clipping_threshold, rms, above=0)
  if momentum is not None:
    bounds.within('momentum', momentum, 'None for none', least=0, below=1)
  if weight_decay is not None:
    taken_off = 'part of a matrix taken off, None for none'
    bounds.within('weight_decay', weight_decay, taken_off, least=0, below=1)
  made = functools.partial(
    optax.adafactor,
    schedule,
    min_dim_size_to_factor=32,
    decay_rate=decay_rate,
    clipping_threshold=clipping_threshold,
    momentum=momentum,
    multiply_by_parameter_scale=False,
  )
  if factors is None:
    return made(weight_decay_rate=weight_decay, weight_decay_mask=_decayed)
  of = lambda name: factors(name, False)
  steps = [made(), _scaled(of)]
  if weight_decay is not None:
    # The sign is negative, since optax adds these updates to the parameters.
    subtracted = lambda name: (
      -weight_decay * of(name).decay * groups_lib.is_decayed(name)
    )
    steps.append(groups_lib.decay(subtracted))
  return optax.chain(*steps)


def build(
  optimizer: optax.GradientTransformation,
  clip_norm: float = 1.0,
  frozen: Sequence[str] = (),
  storage: Storage = FLOAT32,
  groups: Sequence[Group] = (),
) -> Optimizer:
  """Adds clipping by the global norm and frozen parameters to an optimizer.

  Args:
    optimizer: transformation of clipped gradients into updates.
    clip_norm: largest global norm; 0 for no clipping.
    frozen: regular expressions. A parameter is not trained, and has no
      optimizer state, if one of them matches its path 'a/b/c' in full.
    storage: formats of parameters and gradients.
    groups: groups of parameters for which `optimizer` has factors; only their
      patterns are used, for a check.

  Raises:
    ValueError: for a pattern of `frozen` that is not a regular expression.
      `init` raises a ValueError for a pattern that matches no parameter.
  """
  groups_lib.check_patterns('FROZEN', frozen)
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  chain = optax.chain(*steps, optimizer)
  patterns = [group[0] for group in groups]
  if not frozen:
    return _in_float32(chain, storage, patterns)

  def labels(params: PyTree) -> PyTree:
    groups_lib.check_matches('FROZEN', frozen, params)
    paths = names(params)
    is_frozen = lambda n: any(re.fullmatch(p, n) for p in frozen)
    return jax.tree.map(
      lambda n: 'frozen' if is_frozen(n) else 'trained', paths
    )

  transforms = {'trained': chain, 'frozen': optax.set_to_zero()}
  made = optax.multi_transform(transforms, labels)
  return _in_float32(made, storage, patterns)


def _in_float32(
  optimizer: optax.GradientTransformation,
  storage: Storage,
  patterns: Sequence[str],
) -> Optimizer:
  """Wraps an optimizer so that it gets all arrays in float32."""
  optimizer = optax.with_extra_args_support(optimizer)

  # optax mixes dtypes, which would be an error under strict promotion.
  def init(params: PyTree) -> optax.OptState:
    groups_lib.check_matches('GROUPS', patterns, params)
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.init(to_float32(params))

  def update(
    grads: PyTree,
    state: optax.OptState,
    params: PyTree,
    shardings: Mapping[str, NamedSharding] | None = None,
  ) -> tuple[PyTree, optax.OptState]:
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.update(
        to_float32(grads), state, to_float32(params), shardings=shardings
      )

  return Optimizer(init, update, storage)


def placed(optimizer: Optimizer, params: PyTree) -> Optimizer:
  """An optimizer that knows how the parameters are divided over devices.

  Muon uses this to divide its matrix products.

  Args:
    optimizer: made by `build`.
    params: shapes with shardings.
  """
  shardings = dict(
    zip(
      jax.tree.leaves(names(params)),
      (p.sharding for p in jax.tree.leaves(params)),
      strict=True,
    )
  )
  update = functools.partial(optimizer.update, shardings=shardings)
  return optimizer._replace(update=update)
