"""Reading checkpoints: the newest sound step, and its arrays.

Nothing here needs a `Checkpointer`, so that evaluation and sampling can read a
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

from moe.checkpoint import integrity, literal_path
from moe.checkpoint.listing import (
  locate,
  read_meta,
  steps,
)
from moe.parallel.shardings import Shaped, path_name
from moe.types import Array, PyTree

_LOG = logging.getLogger(__name__)

# Arrays are read together up to this size: small models need one reading.
GROUP_BYTES = 64 * 2**20

# Pairs of (pattern, stored name). The pattern is a regular expression that must
# match a whole path in the target. The stored name is a path in the checkpoint,
# which may refer to groups as \1, or None: then the array keeps its value in
# the target.
Assignment = Sequence[tuple[str, str | None]]

# Gives the sharding of an array from its path, such as
# params/decoder/embedding, and its shape.
Placement = Callable[[str, Shaped], jax.sharding.Sharding]


def choose(directory: epath.Path, step: int | None) -> tuple[int, list[int]]:
  """The newest step in which every file verifies, or the step asked for.

  Returns:
    (step, newer steps that are damaged); a warning has named each of those.

  Raises:
    ValueError: if `step` is absent or damaged, or if no step is good.
  """
  found = steps(directory)
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
  damaged = {}  # What is wrong with each step.
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


def read(step_directory: epath.Path, abstract: PyTree) -> PyTree:
  """Reads every array of a step into the given structure and shardings.

  Raises:
    ValueError: if one side lacks an array, or a shape or dtype differs. The
      message names the arrays.
  """
  wanted = leaves(abstract)
  stored = leaves(_stored_tree(step_directory))
  problems = [f'{name} is not in the model' for name in stored.keys() - wanted]
  for name, leaf in wanted.items():
    problems += _mismatch(name, leaf, name, stored.get(name), is_exact=True)
  _raise_if(problems, step_directory)
  item = jax.tree.map(_placed, abstract)
  return _restore(step_directory, item)


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
    directory: of a run, of its checkpoints, or of one step.
    step: which step, None for the newest that verifies.
    target: {'params': ..., 'state': ...}, or one of the two, with leaves as in
      `Checkpointer.restore`; None reads both as they were saved. Floating
      dtypes are converted to the target's.
    placement: gives the sharding of leaves that name none; by default they lie
      on the first device.
    assignment: where each array comes from; the first match counts, and without
      a match an array has the same path in the checkpoint. Paths are those of
      the error messages, such as params/decoder/embedding.
    optional: regular expression that an array's path must match as a whole.
      Such an array keeps its value in `target` where the checkpoint has none
      that fits, and may stay unused in the checkpoint.

  Returns:
    ({'params': ..., 'state': ...}, meta).

  Raises:
    ValueError: if an array is missing or has another shape, if an array is kept
      but has no value in `target`, or if an array of the checkpoint is unused
      and there is no assignment. The message names the arrays.
  """
  directory, located = locate(directory)
  step, _ = choose(directory, located if step is None else step)
  path = directory / str(step)
  tree = _stored_tree(path)
  if target is None:
    target = {key: tree[key] for key in ('params', 'state') if key in tree}
  stored, problems = leaves(tree), []
  stored_names = {}  # Path in the checkpoint of each target path that is read.
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
  """Reads what a new run starts from: parameters and the state beside them.

  Args:
    directory: of a run, of its checkpoints, or of one step.
    params: as `target` of `load_params`.
    state: likewise. The bias of a router comes from the same layer as its
      weights; it keeps its value if that layer has no bias of its shape.
    assignment: see `load_params`; paths have no 'params/' in front.

  Returns:
    (params, state, meta).

  Raises:
    ValueError: see `load_params`.
  """
  rules = []
  for ours, theirs in assignment:
    rules.append((f'params/(?:{ours})', theirs and f'params/{theirs}'))
    # State lies under the path of the parameter that it goes with.
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
  """Arrays by target path; each array of the checkpoint is read once."""
  import orbax.checkpoint as ocp  # Half a second; loading a run needs none.

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
  one after the other, and while few others are in memory.
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
  """The problems of a step, a phrase each; none if the step is sound.

  Every byte is read again, and every array is opened.

  Args:
    step_directory: of the step.
    share: (index, count) of the files whose bytes are read; see
      `integrity.check`.
  """
  found = integrity.check(step_directory, share)
  if found:
    return found
  try:
    _stored_tree(step_directory)
  # Orbax and TensorStore raise many kinds of errors; each one means damage.
  except Exception as error:  # noqa: BLE001
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    return [f'state cannot be opened ({reason})']
  return []


def _shared_damage(step_directory: epath.Path) -> list[str]:
  """`damage` for all processes: they divide the files and share the result."""
  share = (jax.process_index(), jax.process_count())
  found = damage(step_directory, share)
  if share[1] > 1:
    bad = multihost_utils.process_allgather(np.array(len(found)))
    if bad.any() and not found:
      found = [f'process {int(bad.argmax())} has found a damaged file']
  return found


def _stored_tree(step_directory: epath.Path) -> PyTree:
  """The tree of a step, whose leaves have shape and dtype; opens each array."""
  import orbax.checkpoint as ocp  # As in `_load`.

  handler = ocp.PyTreeCheckpointHandler()
  return handler.metadata(literal_path.of(step_directory / 'state')).tree


def _restore(step_directory: epath.Path, item: PyTree) -> PyTree:
  import orbax.checkpoint as ocp  # As in `_load`.

  restore_args = ocp.checkpoint_utils.construct_restore_args(item)
  return ocp.PyTreeCheckpointHandler().restore(
    literal_path.of(step_directory / 'state'),
    args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args),
  )


def leaves(tree: PyTree) -> dict[str, Any]:
  """Every leaf by its path 'a/b/c'."""
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
  """The checkpoint's path for a path in the target; None keeps the value."""
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
  """Why an array cannot be read, as a list of at most one phrase."""
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
