"""Says which parameters are matrices, and divides work on them over devices.

Muon orthogonalises matrices. A parameter may hold a stack of matrices: one for
each scanned layer and each expert. The leading dims that count layers and
experts are called batch dims.
"""

import math
import re
from typing import NamedTuple

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe.types import Array

# (regular expression of the path, number of input dims, number of output dims)
# of the parameters that are matrices. All dims before the input dims are batch
# dims. Tables, routers, norm scales and biases are not listed.
_MATRICES = (
  (r'.*/attention/(query|key|value|query_up|key_up|value_up)', 1, 2),
  (r'.*/attention/out', 2, 1),
  (r'.*/attention/(query_down|kv_down)', 1, 1),
  (r'(.*/)?w_\w+', 1, 1),
)


class Matrix(NamedTuple):
  """A stack of matrices [batch, rows, columns], with rows <= columns.

  Attributes:
    name: path of the parameter.
    shape: shape of the parameter.
    num_batch: number of leading dims that are batch dims.
    num_in: number of input dims, which follow the batch dims. The product with
      an input vector sums over them.
  """

  name: str
  shape: tuple[int, ...]
  num_batch: int
  num_in: int

  @property
  def batch(self) -> int:
    """Number of matrices in the stack."""
    return math.prod(self.shape[: self.num_batch])

  @property
  def fan_in(self) -> int:
    """Size of the input of a matrix."""
    return math.prod(self.shape[self.num_batch :][: self.num_in])

  @property
  def fan_out(self) -> int:
    """Size of the output of a matrix."""
    return math.prod(self.shape[self.num_batch + self.num_in :])

  @property
  def is_turned(self) -> bool:
    """Whether the rows are output dims, since there are fewer outputs."""
    return self.fan_in > self.fan_out

  @property
  def sides(self) -> tuple[int, int]:
    """(rows, columns) of a matrix, with rows <= columns."""
    return tuple(sorted((self.fan_in, self.fan_out)))

  def stack(self, a: Array) -> Array:
    """Reshapes the parameter to [batch, rows, columns].

    If the parameter has several batch dims, the last of them counts the
    experts, which are divided over devices. This dim moves to the front, so
    that the experts of one device stay neighbours.
    """
    n = self.num_batch
    if n > 1:
      a = a.transpose(n - 1, *range(n - 1), *range(n, a.ndim))
    a = a.reshape(self.batch, self.fan_in, self.fan_out)
    return a.swapaxes(1, 2) if self.is_turned else a

  def unstack(self, a: Array) -> Array:
    """The inverse of `stack`."""
    n = self.num_batch
    if self.is_turned:
      a = a.swapaxes(1, 2)
    leading = self.shape[:n]
    if n > 1:
      leading = (leading[-1], *leading[:-1])
    a = a.reshape(*leading, *self.shape[n:])
    if n > 1:
      a = a.transpose(*range(1, n), 0, *range(n, a.ndim))
    return a


def matrix_of(name: str, shape: tuple[int, ...]) -> Matrix | None:
  """Describes a parameter as a stack of matrices; None if it is not one.

  Args:
    name: path of the parameter, 'a/b/c'.
    shape: shape of the parameter.
  """
  for pattern, num_in, num_out in _MATRICES:
    if re.fullmatch(pattern, name) and len(shape) >= num_in + num_out:
      return Matrix(name, shape, len(shape) - num_in - num_out, num_in)
  return None


# For each dim of an array, the mesh axes that divide it.
Axes = tuple[tuple[str, ...], ...]


class Division(NamedTuple):
  """How devices share the work on a stack [batch, rows, columns].

  Attributes:
    mesh: mesh of the devices.
    stored: mesh axes that divide each dim while the parameter is stored.
    used: mesh axes that divide each dim while the stack is orthogonalised.
  """

  mesh: Mesh
  stored: Axes
  used: Axes

  def steps(self) -> list[NamedSharding]:
    """The shardings from `stored` to `used`; each step moves one mesh axis.

    XLA moves a single axis to another dim by an all-to-all. If several axes
    move in one step, XLA gathers the whole array.
    """
    now = [list(entry) for entry in self.stored]
    steps = [tuple(map(tuple, now))]
    for dim, wanted in enumerate(self.used):
      for axis in wanted:
        if axis in now[dim]:
          continue
        for axes in now:
          if axis in axes:
            axes.remove(axis)
        now[dim].append(axis)
        steps.append(tuple(map(tuple, now)))
    return [
      NamedSharding(self.mesh, P(*(axes or None for axes in step)))
      for step in steps
    ]


def division(matrix: Matrix, sharding: NamedSharding) -> Division:
  """Decides how devices share the orthogonalisation of a parameter.

  If the number of matrices is divisible by the size of a mesh axis, the axis
  divides the matrices, so that a device works on whole matrices. Otherwise, an
  axis that divides the parameter divides the columns. Then each product of a
  matrix with its transpose is summed over this axis. No axis divides the rows.

  Args:
    matrix: the parameter.
    sharding: sharding of the parameter.

  Raises:
    ValueError: if a mesh axis divides the parameter, but its size divides
      neither the number of matrices nor the number of columns.
  """
  mesh = sharding.mesh
  entries = [
    (e,) if isinstance(e, str) else tuple(e or ()) for e in sharding.spec
  ]
  entries += [()] * (len(matrix.shape) - len(entries))
  n, m = matrix.num_batch, matrix.num_batch + matrix.num_in
  sides = [_joined(entries[n:m]), _joined(entries[m:])]
  if matrix.is_turned:
    sides.reverse()
  experts = entries[n - 1] if n else ()
  stored = [experts, *sides]
  divided = [axis for axes in (experts, *sides) for axis in axes]
  others = [a for a in mesh.shape if mesh.shape[a] > 1 and a not in divided]
  used = [[], [], []]
  left = [matrix.batch, *matrix.sides]
  for axis in [*divided, *others]:
    size = mesh.shape[axis]
    dim = next((d for d in (0, 2) if left[d] % size == 0), None)
    if dim == 2 and axis in others:
      continue  # Each device along this axis already has a copy.
    if dim is None:
      if axis in others:
        continue
      raise ValueError(
        f"Muon needs the mesh axis '{axis}' ({size} devices), which divides"
        f' parameter {matrix.name}, to divide its {matrix.batch} matrices or'
        f' their longer side {matrix.sides[1]}, got {left[0]} matrices and'
        f' {left[2]} columns a device: change the size or the mesh, or set'
        ' OPTIMIZER=@optimizers.adamw.'
      )
    used[dim].append(axis)
    left[dim] //= size
  return Division(mesh, tuple(stored), tuple(map(tuple, used)))


def _joined(entries: list[tuple[str, ...]]) -> tuple[str, ...]:
  return tuple(axis for entry in entries for axis in entry)
