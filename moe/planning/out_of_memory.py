"""Says what fills the memory of a device, and which settings would free some.

JAX raises the same error when a program that it compiles needs too much memory
and when an array cannot be allocated while a program runs.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from moe.parallel import shardings
from moe.planning import changes
from moe.runs.run import Run
from moe.scale import topology
from moe.scale.topology import Slice
from moe.train.program import Program

_NUM_SHOWN = 5
# XLA lists the size of a temporary, its operation if it is known, and its
# shape.
_TEMPORARY = re.compile(
  r'Size: ([\d.]+[KMGT]?)i?B?\s+(?:Operator: op_name="([^"]*)"[^\n]*\s+)?'
  r'(?:[^\n]*\n\s+){0,3}?Shape: (\w+\[[\d,]*\])'
)


class OutOfMemory(ValueError):
  """A device has too little memory; the message says what to change."""


@contextlib.contextmanager
def explained(run: Run, program: Program) -> Iterator[None]:
  """Turns an out-of-memory error of the block into an `OutOfMemory`.

  Args:
    run: the run, whose settings the message proposes to change.
    program: the program of the run, whose arrays the message lists.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise OutOfMemory(describe(run, program, str(error))) from error


def describe(run: Run, program: Program, message: str) -> str:
  """Names the largest arrays, and at most three ways to save memory.

  Args:
    run: the run.
    program: its program.
    message: message of JAX's error.
  """
  parts = [f'A device has too little memory: {message.splitlines()[0]}']
  parts.append('The largest arrays of its state: ' + _state(program) + '.')
  temporaries = _temporaries(message)
  if temporaries:
    parts.append(f'The largest arrays inside a step: {temporaries}.')
  found = knobs(run, program)
  if found:
    ways = '; or '.join(f'{k["knob"]} ({k["effect"]})' for k in found)
    parts.append(f'The cheapest ways to save memory: {ways}')
  else:
    parts.append(
      'No setting saves memory: use more devices, or a smaller model'
    )
  return ' '.join(parts) + '. `python -m launch.plan` shows the rest.'


def knobs(run: Run, program: Program) -> list[dict]:
  """At most three changes that save memory on the program's devices."""
  devices = list(program.mesh.devices.flat)
  slice_ = _slice_of(devices)
  if slice_ is None:
    return changes.knobs_by_work(run, program.mesh)
  return changes.knobs(run, slice_, devices)


def _slice_of(devices: Sequence[jax.Device]) -> Slice | None:
  """The slice of some TPUs; None for other devices and for several slices."""
  kind = topology.kind_of(devices[0].device_kind)
  names = [name for name, chip in topology.CHIPS.items() if chip.kind == kind]
  if not names or not hasattr(devices[0], 'coords'):
    return None
  chip = topology.CHIPS[names[0]]
  coords = np.array([d.coords for d in devices])
  extent = coords.max(axis=0) - coords.min(axis=0) + 1
  if extent.prod() * chip.devices != len(devices):
    return None
  return Slice(names[0], tuple(int(n) for n in extent[: chip.torus_dims]))


def _state(program: Program) -> str:
  """The largest arrays of the state, by their bytes on a device."""
  state = {
    'params': program.abstract.params,
    'opt_state': program.abstract.opt_state,
    'state': program.abstract.state,
  }
  arrays = [
    (shardings.device_bytes(leaf, leaf.sharding), path, leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
  ]
  total = sum(num_bytes for num_bytes, *_ in arrays)
  arrays.sort(key=lambda array: -array[0])
  shown = [
    f'{shardings.path_name(path)} {leaf.dtype}'
    f'[{",".join(map(str, leaf.shape))}] {_gib(num_bytes)}'
    for num_bytes, path, leaf in arrays[:_NUM_SHOWN]
  ]
  return ', '.join(shown) + f'; all together {_gib(total)} on each device'


def _temporaries(message: str) -> str:
  """The first temporaries in XLA's message, which lists the largest first."""
  found = dict.fromkeys(_TEMPORARY.findall(message))
  return ', '.join(
    f'{operation.rpartition("jit(")[2] or "array"} {shape} {size}'
    for size, operation, shape in list(found)[:_NUM_SHOWN]
  )


def _gib(num_bytes: int) -> str:
  return f'{num_bytes / topology.GIB:.3g} GiB'
