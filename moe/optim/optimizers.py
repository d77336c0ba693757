"""Optimizers: gradient clipping, AdamW or Adafactor, frozen parts."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from moe.types import PyTree


def _names(tree: PyTree) -> PyTree:
  def name(path, _):
    return '/'.join(str(getattr(k, 'key', k)) for k in path)

  return jax.tree_util.tree_map_with_path(name, tree)


def _decayed(params: PyTree) -> PyTree:
  """True for matrices; norm scales and biases are not decayed."""
  return jax.tree.map(
    lambda name: not re.search(r'(scale|bias)$', name), _names(params)
  )


def adamw(
  schedule: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019); norm scales are not decayed."""
  return optax.adamw(
    schedule,
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=_decayed,
    mu_dtype=jnp.float32,
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
    weight_decay: part of a matrix taken off each step, whatever the learning
      rate, unlike AdamW's; None for none.
  """
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
) -> optax.GradientTransformation:
  """Clips the gradient's global norm, updates, and holds frozen parts still.

  Args:
    optimizer: what turns clipped gradients into updates.
    clip_norm: largest global norm; 0 for no clipping.
    frozen: regular expressions; parameters whose path 'a/b/c' one of them
      matches in full are not trained, and have no optimizer state.

  Raises:
    ValueError: for a pattern that is no regular expression and, from `init`,
      for one that matches no parameter.
  """
  for pattern in frozen:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"FROZEN pattern '{pattern}' must be a regular expression ({error})."
      ) from error
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  chain = optax.chain(*steps, optimizer)
  if not frozen:
    return _with_standard_promotion(chain)

  def labels(params):
    names = _names(params)
    for pattern in frozen:
      if not any(re.fullmatch(pattern, n) for n in jax.tree.leaves(names)):
        raise ValueError(
          f"FROZEN pattern '{pattern}' must match the path of a parameter in"
          ' full (see model.txt of a run), but matches none.'
        )
    is_frozen = lambda n: any(re.fullmatch(p, n) for p in frozen)
    return jax.tree.map(
      lambda n: 'frozen' if is_frozen(n) else 'trained', names
    )

  transforms = {'trained': chain, 'frozen': optax.set_to_zero()}
  return _with_standard_promotion(optax.multi_transform(transforms, labels))


def _with_standard_promotion(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The optimizer, traced as optax expects even where promotion is strict."""

  def init(params):
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.init(params)

  def update(grads, state, params=None):
    with jax.numpy_dtype_promotion('standard'):
      return optimizer.update(grads, state, params)

  return optax.GradientTransformation(init, update)
