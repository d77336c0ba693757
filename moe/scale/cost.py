"""Parameters and FLOPs of a model, from shapes alone."""

import jax

from moe import axes
from moe.types import PyTree


def parameter_counts(
  shapes: PyTree, logical_axes: PyTree, num_active: int
) -> tuple[int, int]:
  """Parameters in all, and those one token passes through.

  Args:
    shapes: arrays or shapes of the parameters.
    logical_axes: a tuple of axis names for each, as a model's `init` gives it.
    num_active: experts that one token sees.

  Returns:
    (total, active); of an array with an expert dim E, num_active / E is active.
  """
  is_axes = lambda a: isinstance(a, tuple)
  names = jax.tree.leaves(logical_axes, is_leaf=is_axes)
  total = active = 0
  for leaf, logical in zip(jax.tree.leaves(shapes), names, strict=True):
    total += leaf.size
    if axes.EXPERT in logical:
      E = leaf.shape[logical.index(axes.EXPERT)]
      active += leaf.size // E * num_active
    else:
      active += leaf.size
  return int(total), int(active)


def flops_per_token(
  active: int,
  embedding: int,
  attention_width: int,
  num_layers: int,
  length: int,
) -> int:
  """Model FLOPs of one token's forward pass; training costs three times that.

  The counter for MFU: two FLOPs for each active parameter in a product,
  attention counted causal (half of the T x T scores), no recomputation, no
  padding.

  Args:
    active: active parameters.
    embedding: of these, in tables that are read and not multiplied.
    attention_width: heads x head width.
    num_layers: attention layers.
    length: T.
  """
  products = 2 * (active - embedding)
  # Scores and weighted values: 2 products of 2 FLOPs, over T / 2 keys each.
  attention = 2 * 2 * attention_width * (length // 2) * num_layers
  return products + attention
