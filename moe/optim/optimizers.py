"""Optimizers: gradient clipping, AdamW or Adafactor, frozen parts."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moe import bounds
from moe.optim import moments
from moe.optim.storage import FLOAT32, Storage, is_kept, names, to_float32
from moe.types import PyTree


class Optimizer(NamedTuple):
  """What turns gradients into updates, and how its arrays are kept.

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
  """True for matrices; norm scales and biases are not decayed."""
  return jax.tree.map(
    lambda name: not re.search(r'(scale|bias)$', name), names(params)
  )


def adamw(
  schedule: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  moment_dtype: str = 'float32',
) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019); norm scales are not decayed.

  Args:
    schedule: learning rate by step.
    b1: decay of the first moment, at least 0 and below 1.
    b2: decay of the second one, at least 0 and below 1.
    eps: added to the root of the second moment, above 0.
    weight_decay: part of a matrix taken off, times the learning rate, at least
      0.
    moment_dtype: 'float32', 'bfloat16' or 'int8', for the moments of matrices;
      the moments of routers, norm scales and biases are float32.

  Raises:
    ValueError: for a number out of range, and for another `moment_dtype`.
  """
  bounds.within('b1', b1, 'decay of the first moment', least=0, below=1)
  bounds.within('b2', b2, 'decay of the second moment', least=0, below=1)
  bounds.within('eps', eps, 'added to a root that may be 0', above=0)
  taken_off = 'part of a matrix taken off, 0 for none'
  bounds.within('weight_decay', weight_decay, taken_off, least=0)
  bounds.one_of('moment_dtype', moment_dtype, moments.DTYPES)
  if moment_dtype == 'float32':
    return optax.adamw(
      schedule,
      b1=b1,
      b2=b2,
      eps=eps,
      weight_decay=weight_decay,
      mask=_decayed,
      mu_dtype=jnp.float32,
    )

  def labels(params: PyTree) -> PyTree:
    return jax.tree.map(
      lambda name: 'kept' if is_kept(name) else 'stored', names(params)
    )

  direction = {
    'kept': optax.scale_by_adam(b1, b2, eps),
    'stored': moments.scale_by_adam(b1, b2, eps, moment_dtype),
  }
  return optax.chain(
    optax.partition(direction, labels),
    optax.add_decayed_weights(weight_decay, _decayed),
    optax.scale_by_learning_rate(schedule),
  )


def adafactor(
  schedule: optax.Schedule,
  decay_rate: float = 0.8,
  clipping_threshold: float = 1.0,
  momentum: float | None = None,
  weight_decay: float | None = None,
) -> optax.GradientTransformation:
  """Adafactor (Shazeer & Stern 2018): second moments as rows and columns.

  Args:
    schedule: learning rate by step.
    decay_rate: exponent of the second moments' decay.
    clipping_threshold: largest root-mean-square of one array's update.
    momentum: of the updates; None for none, which takes no memory.
    weight_decay: part of a matrix taken off each step; unlike AdamW's, it does
      not depend on the learning rate. None for none.

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
  return optax.adafactor(
    schedule,
    min_dim_size_to_factor=32,
    decay_rate=decay_rate,
    clipping_threshold=clipping_threshold,
    momentum=momentum,
    weight_decay_rate=weight_decay,
    weight_decay_mask=_decayed,
    multiply_by_parameter_scale=False,
  )


def build(
  optimizer: optax.GradientTransformation,
  clip_norm: float = 1.0,
  frozen: Sequence[str] = (),
  storage: Storage = FLOAT32,
) -> Optimizer:
  """An optimizer with gradients clipped by their global norm, and frozen parts.

  Args:
    optimizer: what turns clipped gradients into updates.
    clip_norm: largest global norm; 0 for no clipping.
    frozen: regular expressions. A parameter is not trained, and has no
      optimizer state, if one of them matches its path 'a/b/c' in full.
    storage: formats of parameters and gradients.

  Raises:
    ValueError: for a pattern that is no regular expression; `init` raises it
      for a pattern that matches no parameter.
  """
  for pattern in frozen:
    bounds.regular_expression('FROZEN', pattern)
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  chain = optax.chain(*steps, optimizer)
  if not frozen:
    return _in_float32(chain, storage)

  def labels(params: PyTree) -> PyTree:
    paths = names(params)
    for pattern in frozen:
      if not any(re.fullmatch(pattern, n) for n in jax.tree.leaves(paths)):
        raise ValueError(
          f"FROZEN pattern '{pattern}' must match the path of a parameter in"
          ' full (see model.txt of a run), but matches none.'
        )
    is_frozen = lambda n: any(re.fullmatch(p, n) for p in frozen)
    return jax.tree.map(
      lambda n: 'frozen' if is_frozen(n) else 'trained', paths
    )

  transforms = {'trained': chain, 'frozen': optax.set_to_zero()}
  return _in_float32(optax.multi_transform(transforms, labels), storage)


def _in_float32(
  optimizer: optax.GradientTransformation, storage: Storage
) -> Optimizer:
  """The optimizer, which gets all arrays in float32."""

  # optax mixes dtypes, which strict promotion makes an error.
  def init(params: PyTree) -> optax.OptState:
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.init(to_float32(params))

  def update(
    grads: PyTree, state: optax.OptState, params: PyTree
  ) -> tuple[PyTree, optax.OptState]:
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.update(to_float32(grads), state, to_float32(params))

  return Optimizer(init, update, storage)
