"""Number formats of the arrays in training, and where they are stored."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from moe import bounds
from moe.types import Array, PyTree

DTYPES = ('float32', 'bfloat16')
_MACROS = {
  'params': 'PARAM_DTYPE',
  'grads': 'GRAD_DTYPE',
  'sums': 'SUM_DTYPE',
}
# Paths of small arrays that rounding would hurt, so they are always float32.
_KEPT = re.compile(r'router|(^|/)(scale|bias)$')


@dataclasses.dataclass(frozen=True)
class Storage:
  """Formats of parameters, gradients and sums of gradients.

  Routers, norm scales and biases are always float32, and so are their gradients
  and sums. Moments have a separate setting, see `optimizers.adamw`.

  Attributes:
    params: format of the parameters: 'float32' or 'bfloat16'. With 'bfloat16'
      each update is rounded stochastically.
    grads: format of the gradients in the backward pass and in reductions over
      devices: 'float32' or 'bfloat16'. The model reads a copy of the parameters
      in this format.
    sums: format in which the gradients of microbatches are added: 'float32' or
      'bfloat16'.
    optimizer_on_host: whether the optimizer's state is in host memory between
      updates; only for TPUs and GPUs.
  """

  params: str = 'float32'
  grads: str = 'float32'
  sums: str = 'float32'
  optimizer_on_host: bool = False

  def __post_init__(self):
    for name, macro in _MACROS.items():
      bounds.one_of(macro, getattr(self, name), DTYPES)


FLOAT32 = Storage()


def names(tree: PyTree) -> PyTree:
  """Replaces each leaf of a tree by its path, such as 'a/b/c'."""

  def name(path: tuple, _: Array) -> str:
    return '/'.join(str(getattr(k, 'key', k)) for k in path)

  return jax.tree_util.tree_map_with_path(name, tree)


def is_kept(name: str) -> bool:
  """Whether the array of this path is always float32."""
  return bool(_KEPT.search(name))


def cast(tree: PyTree, dtype: str) -> PyTree:
  """Converts arrays to `dtype`; arrays with `is_kept` become float32."""
  return jax.tree.map(
    lambda name, a: a.astype(jnp.float32 if is_kept(name) else dtype),
    names(tree),
    tree,
  )


def to_float32(tree: PyTree) -> PyTree:
  """Converts all arrays of a tree to float32, in which optimizers compute."""
  return jax.tree.map(lambda a: a.astype(jnp.float32), tree)
