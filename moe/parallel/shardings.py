"""Shardings of parameters, optimizer state and batches."""

import re
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe.parallel.mesh import DATA
from moe.parallel.rules import Table
from moe.types import Array, Field, PyTree

Shaped = Array | jax.ShapeDtypeStruct


def path_name(path: tuple) -> str:
  """Writes a tree path as 'a/b/c'."""
  return '/'.join(
    str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
    for k in path
  )


def _extent(mesh: Mesh, mesh_axes: tuple[str, ...]) -> int:
  return int(np.prod([mesh.shape[a] for a in mesh_axes], dtype=np.int64))


def param_spec(
  name: str, shape: tuple[int, ...], logical: tuple, rules: Table, mesh: Mesh
) -> P:
  """Mesh axes of each dim of one parameter.

  Raises:
    ValueError: if a dim is not divisible by its mesh axes.
  """
  entries, taken = [], set()
  for dim, logical_axis in zip(shape, logical, strict=True):
    mesh_axes = rules[logical_axis] if logical_axis else ()
    # An array can use a mesh axis only once, so the first dim that names an
    # axis gets it.
    mesh_axes = tuple(
      a for a in mesh_axes if mesh.shape[a] > 1 and a not in taken
    )
    parts = _extent(mesh, mesh_axes)
    if dim % parts:
      raise ValueError(
        f"'{logical_axis}' of parameter {name} has {dim} entries, which must be"
        f' divisible by the mesh axes {mesh_axes} ({parts} devices): change the'
        ' size, or the mesh in gin_configs/parallel.'
      )
    taken.update(mesh_axes)
    entries.append(mesh_axes or None)
  return P(*entries)


def param_shardings(
  shapes: PyTree, logical_axes: PyTree, rules: Table, mesh: Mesh
) -> PyTree:
  """Makes a NamedSharding for every parameter."""

  def one(path: tuple, leaf: Shaped, logical: tuple) -> NamedSharding:
    spec = param_spec(path_name(path), leaf.shape, logical, rules, mesh)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, shapes, logical_axes)


def _entries(spec: P, num_dims: int) -> list[tuple[str, ...]]:
  """Returns the mesh axes of each dim as tuples; () for an undivided dim."""
  entries = [(e,) if isinstance(e, str) else e or () for e in spec]
  return entries + [()] * (num_dims - len(entries))


def _spread(spec: P, shape: tuple[int, ...], mesh: Mesh, axis: str) -> P:
  """Adds a mesh axis to the first dim that it can divide, if there is one."""
  if mesh.shape[axis] == 1:
    return spec
  entries = _entries(spec, len(shape))
  for i, (dim, mesh_axes) in enumerate(zip(shape, entries, strict=True)):
    if dim % (_extent(mesh, mesh_axes) * mesh.shape[axis]) == 0:
      entries[i] = (*mesh_axes, axis)
      return P(*entries)
  return spec


def without_dim(leaf: jax.ShapeDtypeStruct, dim: int) -> NamedSharding:
  """The sharding of an array that has the dims of `leaf` except one.

  Each mesh axis that divides the missing dim moves to the first other dim that
  it can divide.

  Args:
    leaf: shape and sharding of an array with all dims.
    dim: index of the missing dim.
  """
  mesh, entries = leaf.sharding.mesh, _entries(leaf.sharding.spec, leaf.ndim)
  freed = entries.pop(dim)
  shape = leaf.shape[:dim] + leaf.shape[dim + 1 :]
  spec = P(*entries)
  for axis in freed:
    spec = _spread(spec, shape, mesh, axis)
  return NamedSharding(mesh, spec)


def optimizer_shardings(
  opt_shapes: PyTree, param_shapes: PyTree, shardings: PyTree, mesh: Mesh
) -> PyTree:
  """Shardings of the optimizer's state, which also use the data axis.

  The path of a state array ends with the path of its parameter. An array with
  the shape of the parameter is divided like the parameter. A factored array
  lacks a dim; its other dims are divided like those of the parameter. Scales of
  blocks of the last dim are divided like this dim, if every device has whole
  blocks. The data axis also divides the first dim of an array that it can
  divide (ZeRO stage 1, Rajbhandari et al. 2020,
  https://arxiv.org/abs/1910.02054).
  """
  flat = jax.tree_util.tree_flatten_with_path(param_shapes)[0]
  specs = {
    path_name(path): (leaf.shape, s.spec)
    for (path, leaf), s in zip(flat, jax.tree.leaves(shardings), strict=True)
  }

  def one(owner: str | None, leaf: Shaped) -> NamedSharding:
    spec = P()
    if owner is not None:
      shape, spec = specs[owner]
      spec = _spec_of_part(leaf.shape, shape, spec, mesh)
    return NamedSharding(mesh, _spread(spec, leaf.shape, mesh, DATA))

  leaves, structure = jax.tree.flatten(opt_shapes)
  found = owners(opt_shapes, specs)
  placed = [one(o, leaf) for o, leaf in zip(found, leaves, strict=True)]
  return jax.tree.unflatten(structure, placed)


def owners(opt_state: PyTree, names: Iterable[str]) -> list[str | None]:
  """Returns the parameter's path for each array of optimizer state.

  Args:
    opt_state: arrays or shapes.
    names: paths of the parameters, 'a/b/c'.

  Returns:
    For each leaf of the state, the longest name with which its path ends; None
    if there is no such name.
  """
  by_length = sorted(names, key=len, reverse=True)
  return [
    next(
      (
        n
        for n in by_length
        if re.search(f'(^|/){re.escape(n)}$', path_name(path))
      ),
      None,
    )
    for path, _ in jax.tree_util.tree_flatten_with_path(opt_state)[0]
  ]


def _spec_of_part(
  part: tuple[int, ...], whole: tuple[int, ...], spec: P, mesh: Mesh
) -> P:
  """Derives the spec of a state array from the spec of its parameter.

  Args:
    part: shape of the state array: the shape of the parameter, or this shape
      without one dim, or this shape with the number of blocks as the last dim,
      if blocks of the last dim share a number.
    whole: shape of the parameter.
    spec: spec of the parameter.
    mesh: mesh of the devices.
  """
  entries = _entries(spec, len(whole))
  if part == whole:
    return P(*entries)
  for i in range(len(whole)):
    if part == whole[:i] + whole[i + 1 :]:
      return P(*entries[:i], *entries[i + 1 :])
  if part and len(part) == len(whole) and part[:-1] == whole[:-1]:
    blocks_divide = part[-1] % _extent(mesh, entries[-1]) == 0
    return P(*entries[:-1], entries[-1] if blocks_divide else ())
  return P()


def on_host(opt_shapes: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
  """Moves the shardings of all arrays except scalars to host memory.

  Raises:
    ValueError: if the devices are not TPUs or GPUs.
  """
  platform = mesh.devices.flat[0].platform
  if platform not in ('tpu', 'gpu'):
    raise ValueError(
      'OPTIMIZER_ON_HOST=True needs devices with a memory of their own, TPUs or'
      f" GPUs, got the platform '{platform}': set it to False here."
    )
  return jax.tree.map(
    lambda a, s: s.with_memory_kind('pinned_host') if a.ndim else s,
    opt_shapes,
    shardings,
  )


def batch_shardings(fields: PyTree, rules: Table, mesh: Mesh) -> PyTree:
  """Makes the shardings of a batch from the logical axes of its `Field`s."""

  def one(field: Field) -> NamedSharding:
    entries = (rules[axis] if axis else () for axis in field.axes)
    return NamedSharding(mesh, P(*(entry or None for entry in entries)))

  return jax.tree.map(one, fields)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array of which every device has a whole copy."""
  return NamedSharding(mesh, P())


def device_bytes(leaf: Shaped, sharding: NamedSharding) -> int:
  """Bytes of an array on one device."""
  shape = sharding.shard_shape(leaf.shape)
  return int(np.prod(shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
