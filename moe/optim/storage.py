"""In which number formats, and where, the arrays of training are kept."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from moe.types import PyTree

DTYPES = ('float32', 'bfloat16')
_MACROS = {
  'params': 'PARAM_DTYPE',
  'grads': 'GRAD_DTYPE',
  'sums': 'SUM_DTYPE',
}
# Few numbers that much depends on: they stay float32 whatever is asked for.
_KEPT = re.compile(r'router|(^|/)(scale|bias)$')


@dataclasses.dataclass(frozen=True)
class Storage:
  """Formats of the arrays that a training step reads, makes and writes.

  Routers, norm scales and biases are float32 in each of them. The moments'
  format is the optimizer's own, see `optimizers.adamw`.

  Attributes:
    params: of parameters: 'float32', or 'bfloat16' with stochastic rounding of
      each update.
    grads: of gradients, from the backward pass through their reductions:
      'float32' or 'bfloat16'. The model reads parameters in this format.
    sums: in which gradients of microbatches are added: 'float32' or
      'bfloat16'.
    optimizer_on_host: whether the optimizer's state waits in the memory of the
      host; TPUs and GPUs only.
  """

  params: str = 'float32'
  grads: str = 'float32'
  sums: str = 'float32'
  optimizer_on_host: bool = False

  def __post_init__(self):
    for name, macro in _MACROS.items():
      if getattr(self, name) not in DTYPES:
        raise ValueError(
          f"{macro}='{getattr(self, name)}' must be one of {DTYPES}."
        )


FLOAT32 = Storage()


def names(tree: PyTree) -> PyTree:
  """A tree like `tree` of each leaf's path, 'a/b/c'."""

  def name(path, _):
    return '/'.join(str(getattr(k, 'key', k)) for k in path)

  return jax.tree_util.tree_map_with_path(name, tree)


def is_kept(name: str) -> bool:
  """Whether the array of this path is float32 always."""
  return bool(_KEPT.search(name))


def cast(tree: PyTree, dtype: str) -> PyTree:
  """A tree like the parameters in another format, but for what is kept."""
  return jax.tree.map(
    lambda name, a: a.astype(jnp.float32 if is_kept(name) else dtype),
    names(tree),
    tree,
  )


def to_float32(tree: PyTree) -> PyTree:
  """A tree all in float32, as optimizers compute."""
  return jax.tree.map(lambda a: a.astype(jnp.float32), tree)
