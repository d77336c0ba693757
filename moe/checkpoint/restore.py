"""Reads checkpoints: finds the newest sound step, and reads its arrays.

This file needs no `Checkpointer`, so that evaluation and sampling can read a
run that still trains.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from moe import outages
from moe.checkpoint import integrity, literal_path
from moe.checkpoint.listing import locate, read_meta, shared_steps
from moe.parallel.shardings import Shaped, path_name
from moe.types import Array, PyTree

_LOG = logging.getLogger(__name__)

# Arrays are read in groups of at most so many bytes, and a larger one alone.
GROUP_BYTES = 64 * 2**20

# Pairs of (pattern, stored name). The pattern is a regular expression that must
# match a whole path in the target. The stored name is a path in the checkpoint
# and may refer to groups of the pattern as \1. If the stored name is None, the
# array keeps its value in the target.
Assignment = Sequence[tuple[str, str | None]]

# (path such as params/decoder/embedding, array or its shape) -> its sharding.
Placement = Callable[[str, Shaped], jax.sharding.Sharding]


def choose(directory: epath.Path, step: int | None) -> tuple[int, list[int]]:
  """Finds the newest sound step, or checks that the requested step is sound.

  Returns:
    (step, damaged steps that are newer). A warning names each damaged step.

  Raises:
    ValueError: if `step` is absent or damaged, or if no step is sound.
  """
  found = shared_steps(directory)
  if step is not None and step not in found:
    raise ValueError(
      f'Step {step} must be in {directory}, got the steps {found}: choose one'
      ' of them.'
    )
  if not found:
    raise ValueError(
      f'{directory} must hold a checkpoint, got none: train first, or choose'
      ' another directory.'
    )
  damaged = {}  # Step -> its problems.
  # If the requested step is damaged, we check the other steps too, so that the
  # error message can name a sound one.
  others = [other for other in reversed(found) if other != step]
  for candidate in others if step is None else [step, *others]:
    problems = _shared_damage(directory / str(candidate))
    if not problems and step in damaged:
      raise ValueError(
        f'Step {step} in {directory} must be sound, got {damaged[step]}: step'
        f' {candidate} is, so name {directory / str(candidate)}, or restore the'
        ' files from a copy.'
      )
    if not problems:
      return candidate, list(damaged)
    more = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
    damaged[candidate] = problems[0] + more
    _LOG.warning(
      'Checkpoint %d in %s is damaged: %s.',
      candidate, directory, damaged[candidate],
    )  # fmt: skip
  raise ValueError(
    f'No sound checkpoint in {directory}: {problems[0]} in step {candidate}'
    f' (damaged: {list(damaged)}): restore the files from a copy, or choose'
    ' another directory.'
  )


def read(
  step_directory: epath.Path, abstract: PyTree, optional: str = ''
) -> PyTree:
  """Reads every array of a step into the given structure and shardings.

  Args:
    step_directory: directory of the step.
    abstract: the wanted shapes and shardings.
    optional: regular expression of whole paths. An array with such a path is
      zero if the checkpoint lacks it, ignored if only the checkpoint has it.

  Raises:
    ValueError: if the structure or the checkpoint lacks an array, or if a shape
      or dtype differs. The message names the arrays.
  """
  import orbax.checkpoint as ocp  # The import takes half a second.

  wanted, tree = leaves(abstract), _stored_tree(step_directory)
  stored = leaves(tree)
  free = {n for n in wanted.keys() ^ stored if re.fullmatch(optional, n)}
  problems = [
    f'{name} is not in the model' for name in stored.keys() - wanted - free
  ]
  for name, leaf in wanted.items():
    if name not in free:
      problems += _mismatch(name, leaf, name, stored.get(name), is_exact=True)
  _raise_if(problems, step_directory)

  def chosen(key: tuple, _: Shaped) -> Any:
    name = path_name(key)
    return ocp.PLACEHOLDER if name in free else _placed(wanted[name])

  def filled(key: tuple, leaf: Shaped) -> Array:
    if path_name(key) in found:
      return found[path_name(key)]
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

  item = jax.tree_util.tree_map_with_path(chosen, tree)
  found = leaves(_restore(step_directory, item))
  return jax.tree_util.tree_map_with_path(filled, abstract)


def load_params(
  directory: epath.PathLike,
  step: int | None = None,
  target: dict[str, PyTree] | None = None,
  *,
  placement: Placement | None = None,
  assignment: Assignment = (),
  optional: str = '',
) -> tuple[dict[str, PyTree], dict[str, Any]]:
  """Reads `params` and `state` of a step, without the optimizer.

  Args:
    directory: directory of a run, of its checkpoints, or of one step.
    step: number of the step. None takes the step that `directory` names; if it
      names none, the newest sound step.
    target: {'params': ..., 'state': ...}, or one of the two. Its leaves are
      arrays or jax.ShapeDtypeStruct. None reads both with their saved shapes
      and dtypes. Floating-point arrays are converted to the target's dtypes.
    placement: gives the sharding of a leaf that has none. By default such a
      leaf goes to the first device.
    assignment: says which array of the checkpoint each target array gets. The
      first match counts. Without a match an array has the same path in both.
      Paths are written like params/decoder/embedding.
    optional: regular expression that must match a whole path. An array with
      such a path keeps its value in `target` if the checkpoint has no array
      that fits. If the checkpoint has such an array and the target does not, it
      is ignored.

  Returns:
    ({'params': ..., 'state': ...}, meta).

  Raises:
    ValueError: if no step can be read; if an array is missing or does not fit;
      if an array should keep its value but `target` has only its shape; or if
      there is no assignment and an array of the checkpoint has no use. The
      message names the step or the arrays.
  """
  directory, located = locate(directory)
  step, _ = choose(directory, located if step is None else step)
  path = directory / str(step)
  tree = _stored_tree(path)
  if target is None:
    target = {key: tree[key] for key in ('params', 'state') if key in tree}
  stored, problems = leaves(tree), []
  stored_names = {}  # Target path -> path in the checkpoint.
  for name, leaf in leaves(target).items():
    stored_name = _stored_name(name, assignment)
    found = stored_name and _mismatch(
      name, leaf, stored_name, stored.get(stored_name)
    )
    if stored_name and not (found and re.fullmatch(optional, name)):
      stored_names[name] = stored_name
      problems += found
    elif not isinstance(leaf, jax.Array | np.ndarray):
      problems.append(f'{name} is kept but has no initial value')
  if not assignment:
    unused = stored.keys() - set(stored_names.values())
    kinds = tuple(f'{key}/' for key in target)
    problems += [
      f'{n} is not in the model'
      for n in unused
      if n.startswith(kinds) and not re.fullmatch(optional, n)
    ]
  _raise_if(problems, path)
  arrays = _load(path, tree, target, stored_names, placement)
  filled = jax.tree_util.tree_map_with_path(
    lambda key, leaf: arrays.get(path_name(key), leaf), target
  )
  return filled, read_meta(path)


def load_initial(
  directory: epath.PathLike,
  params: PyTree,
  state: PyTree,
  assignment: Assignment = (),
) -> tuple[PyTree, PyTree, dict[str, Any]]:
  """Reads the initial parameters and model state of a new run.

  Args:
    directory: directory of a run, of its checkpoints, or of one step.
    params: the target's parameters, see `load_params`.
    state: the target's state, see `load_params`. The bias of a router is read
      from the same layer as the router's weights. If this layer has no bias of
      the right shape, the bias keeps its value.
    assignment: see `load_params`, but paths do not begin with 'params/'.

  Returns:
    (params, state, meta).

  Raises:
    ValueError: see `load_params`.
  """
  rules = []
  for ours, theirs in assignment:
    rules.append((f'params/(?:{ours})', theirs and f'params/{theirs}'))
    # The path of a state array begins with the path of its parameter.
    stored_name = theirs and rf'state/{theirs}/\g<_state>'
    rules.append((f'state/(?:{ours})/(?P<_state>[^/]+)', stored_name))
  loaded, meta = load_params(
    directory,
    target={'params': params, 'state': state},
    assignment=rules,
    optional='state/.*',
  )
  return loaded['params'], loaded['state'], meta


def _load(
  path: epath.Path,
  tree: PyTree,
  target: dict[str, PyTree],
  stored_names: dict[str, str],
  placement: Placement | None,
) -> dict[str, Array]:
  """Returns target path -> array; reads each array of the checkpoint once."""
  import orbax.checkpoint as ocp  # The import takes half a second.

  wanted = {
    name: _placed(leaf, placement and placement(name, leaf))
    for name, leaf in leaves(target).items()
    if name in stored_names
  }
  first = {}
  for name, stored_name in stored_names.items():
    first.setdefault(stored_name, wanted[name])
  read_arrays = {}
  for group in _groups(first):
    item = jax.tree_util.tree_map_with_path(
      lambda key, _, g=group: g.get(path_name(key), ocp.PLACEHOLDER), tree
    )
    found = leaves(_restore(path, item))
    read_arrays |= {name: found[name] for name in group}
  # Two targets may read one array with different shardings or dtypes.
  return {
    name: jax.device_put(
      read_arrays[stored_names[name]].astype(leaf.dtype), leaf.sharding
    )
    for name, leaf in wanted.items()
  }


def _groups(
  shapes: dict[str, jax.ShapeDtypeStruct],
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
  """Yields the arrays that are read together, the largest ones first.

  While Orbax reads an array, the host holds it twice. So large arrays are read
  one by one, and first, because few others are in memory then.
  """
  size = lambda name: shapes[name].size * shapes[name].dtype.itemsize
  group, filled = {}, 0
  for name in sorted(shapes, key=lambda name: (-size(name), name)):
    if group and filled + size(name) > GROUP_BYTES:
      yield group
      group, filled = {}, 0
    group[name] = shapes[name]
    filled += size(name)
  if group:
    yield group


def damage(
  step_directory: epath.Path, share: tuple[int, int] = (0, 1)
) -> list[str]:
  """Checks a step and returns a phrase for each problem; none if it is sound.

  The check reads every byte again and opens every array.

  Args:
    step_directory: directory of the step.
    share: (index, count): the part of the files that this process reads, see
      `integrity.check`.
  """
  found = integrity.check(step_directory, share)
  if found:
    return found
  try:
    _stored_tree(step_directory)
  # Orbax and TensorStore raise many kinds of errors; nearly all mean damage.
  except Exception as error:  # noqa: BLE001
    integrity.raise_if_it_may_pass(error)
    return [f'state cannot be opened ({outages.reason(error)})']
  return []


def _shared_damage(step_directory: epath.Path) -> list[str]:
  """Like `damage`, but the processes divide the files and share the result."""
  share = (jax.process_index(), jax.process_count())
  found = damage(step_directory, share)
  if share[1] > 1:
    bad = multihost_utils.process_allgather(np.array(len(found)))
    if bad.any() and not found:
      found = [f'process {int(bad.argmax())} has found a damaged file']
  return found


def _stored_tree(step_directory: epath.Path) -> PyTree:
  """Opens each array of a step; returns a tree of their shapes and dtypes."""
  import orbax.checkpoint as ocp  # The import takes half a second.

  handler = ocp.PyTreeCheckpointHandler()
  return handler.metadata(literal_path.of(step_directory / 'state')).tree


def _restore(step_directory: epath.Path, item: PyTree) -> PyTree:
  import orbax.checkpoint as ocp  # The import takes half a second.

  restore_args = ocp.checkpoint_utils.construct_restore_args(item)
  return ocp.PyTreeCheckpointHandler().restore(
    literal_path.of(step_directory / 'state'),
    args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args),
  )


def leaves(tree: PyTree) -> dict[str, Any]:
  """Path such as 'a/b/c' -> leaf, for every leaf of a tree."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {path_name(path): leaf for path, leaf in flat}


def _placed(
  leaf: Shaped, sharding: jax.sharding.Sharding | None = None
) -> jax.ShapeDtypeStruct:
  """The shape, dtype and sharding with which an array is read."""
  own = getattr(leaf, 'sharding', None)
  if not isinstance(own, jax.sharding.Sharding):
    own = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own)


def _stored_name(name: str, assignment: Assignment) -> str | None:
  """The checkpoint's path for a target path; None if the array is not read."""
  for pattern, replacement in assignment:
    match = re.fullmatch(pattern, name)
    if match:
      return None if replacement is None else match.expand(replacement)
  return name


def _mismatch(
  name: str,
  leaf: Shaped,
  stored_name: str,
  stored: Shaped | None,
  is_exact: bool = False,
) -> list[str]:
  """A list with one phrase if an array cannot be read, else an empty list."""
  if stored is None:
    origin = '' if stored_name == name else f' (looked for {stored_name})'
    return [f'{name} is not in the checkpoint{origin}']
  if tuple(stored.shape) != tuple(leaf.shape):
    return [
      f'{name} is {tuple(leaf.shape)} in the model and {tuple(stored.shape)} in'
      ' the checkpoint'
    ]
  floats = all(
    jax.numpy.issubdtype(x.dtype, np.floating) for x in (leaf, stored)
  )
  if stored.dtype != leaf.dtype and (is_exact or not floats):
    return [
      f'{name} is {leaf.dtype} in the model, {stored.dtype} in the checkpoint'
    ]
  return []


def _raise_if(problems: list[str], step_directory: epath.Path) -> None:
  if problems:
    shown = '; '.join(sorted(problems)[:6])
    more = f'; and {len(problems) - 6} more' if len(problems) > 6 else ''
    raise ValueError(
      f'{step_directory} does not fit the model: {shown}{more}: use the'
      ' configuration it was trained with, or assign the arrays by name.'
    )
