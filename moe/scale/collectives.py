"""Finds the collectives of a compiled program, and the bytes that they move."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from moe.scale import hlo

KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'ragged-all-to-all', 'collective-permute', 'collective-broadcast',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One collective, and how often it runs.

  Attributes:
    kind: one of `KINDS`.
    axes: mesh axes that its groups span.
    bytes: bytes of the operand or of the result on a device, whichever is
      larger. For a ragged all-to-all it is the smaller one, because the buffers
      of a ragged all-to-all are larger than their content.
    times: how often it runs in a step.
    group: devices of one group, as indices in the mesh. If slices exchange with
      each other, these are the numbers of the slices.
    source: path of the JAX operation that caused it.
    is_network: whether slices exchange over the data centre's network.
  """

  kind: str
  axes: tuple[str, ...]
  bytes: int
  times: int
  group: tuple[int, ...]
  source: str
  is_network: bool = False

  @property
  def moved(self) -> float:
    """Bytes that each device sends, and also receives, each time this runs."""
    n = len(self.group)
    if self.kind == 'collective-permute':
      return self.bytes
    twice = 2 if self.kind == 'all-reduce' else 1
    return twice * self.bytes * (n - 1) / n


def groups_of(attributes: str, num_devices: int) -> np.ndarray:
  """Reads the replica groups of an instruction, [groups, members].

  Programs write them as {{0,1},{2,3}}, as [2,4]<=[4,2]T(1,0), as
  mesh['a'=2,'b'=4] {'a'}, or as the pairs of a permutation. Each pair becomes a
  group of two.

  Args:
    attributes: the attributes of an instruction.
    num_devices: devices of the mesh. They form one group if the instruction
      names no groups.
  """
  pairs = re.search(
    r'source_target_pairs=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}', attributes
  )
  listed = re.search(
    r'replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}', attributes
  )
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes
  )
  named = re.search(
    r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', attributes
  )
  integers = lambda text: [int(n) for n in text.split(',')]
  if pairs or listed:
    text = (pairs or listed).group(1)
    return np.array([integers(g) for g in re.findall(r'\{([\d,]+)\}', text)])
  if iota:
    ids = np.arange(num_devices).reshape(integers(iota[2]))
    if iota[3]:
      ids = ids.transpose(integers(iota[3]))
    return ids.reshape(integers(iota[1]))
  if named:
    sizes = re.findall(r"'([^']+)'=(\d+)", named[1])
    chosen = re.findall(r"'([^']+)'", named[2])
    names = [name for name, _ in sizes]
    ids = np.arange(num_devices).reshape([int(n) for _, n in sizes])
    moved = [names.index(name) for name in chosen]
    kept = [i for i in range(len(names)) if i not in moved]
    members = math.prod(ids.shape[i] for i in moved)
    return ids.transpose(kept + moved).reshape(-1, members)
  return np.arange(num_devices)[None]


def axes_of(
  group: Sequence[int], mesh_shape: dict[str, int]
) -> tuple[str, ...]:
  """Mesh axes along which the members of a group have different places."""
  places = np.unravel_index(np.asarray(group), tuple(mesh_shape.values()))
  return tuple(
    axis
    for axis, place in zip(mesh_shape, places, strict=True)
    if len(set(place.tolist())) > 1
  )


def find(
  module: hlo.Module, computation: str, i: hlo.Instruction
) -> tuple[str, str, hlo.Instruction] | None:
  """Finds a collective in the instruction `i` or in computations it calls.

  Returns:
    (kind, computation, instruction), or None if there is no collective.
  """
  kind = i.opcode.removesuffix('-start')
  if kind in KINDS:
    return kind, computation, i
  if i.opcode not in ('fusion', 'async-start') or not i.calls:
    return None
  name = i.calls if i.opcode == 'fusion' else module.behind(i)
  for inner in module.computations[name].values():
    found = find(module, name, inner)
    if found:
      # TPU programs write a reduce-scatter as an all-reduce, after which each
      # device keeps only its part of the result.
      scatters = i.calls.startswith('all-reduce-scatter')
      return ('reduce-scatter' if scatters else found[0], *found[1:])
  return None


def transfer(
  module: hlo.Module,
  found: tuple[str, str, hlo.Instruction],
  times: int,
  mesh_shape: dict[str, int],
) -> Transfer | None:
  """Describes a collective as a `Transfer`; None if each group has one device.

  Args:
    module: the program.
    found: the collective, from `find`.
    times: how often it runs in a step.
    mesh_shape: devices by mesh axis, in the order of the mesh.
  """
  kind, computation, i = found
  groups = groups_of(i.attributes, math.prod(mesh_shape.values()))
  if groups.shape[1] == 1:
    return None
  inside = module.computations[computation]
  sizes = [sum(s.bytes for s in inside[o].shapes) for o in i.operands]
  given = sum(sizes)
  shapes = i.shapes
  if i.opcode.endswith('-start') and kind in (
    'all-gather',
    'collective-permute',
  ):
    shapes = shapes[len(i.operands) : 2 * len(i.operands)]
  made = sum(s.bytes for s in shapes)
  if kind == 'ragged-all-to-all':
    # A ragged all-to-all has the rows, a buffer for the result, and four small
    # tables as operands.
    given = made = min(sizes[0], shapes[0].bytes)
  num_bytes = given if kind in ('reduce-scatter', 'all-reduce') else made
  # A permutation has pairs of devices. The pair that is furthest apart decides
  # which mesh axes the transfer spans.
  spread = groups.max(axis=1) - groups.min(axis=1)
  group = tuple(int(d) for d in groups[int(np.argmax(spread))])
  return Transfer(
    kind, axes_of(group, mesh_shape), num_bytes, times, group, i.op_name
  )


_NETWORK_KINDS = {
  'ALL_REDUCE': 'all-reduce',
  'ALL_GATHER': 'all-gather',
  'REDUCE_SCATTER': 'reduce-scatter',
  'ALL_TO_ALL': 'all-to-all',
}


def network_transfer(
  module: hlo.Module,
  computation: str,
  i: hlo.Instruction,
  times: int,
  spanning: tuple[str, int],
) -> Transfer | None:
  """The exchange between slices that an instruction starts, or None.

  The compiler splits a collective of all slices in two. The first part runs
  inside each slice, on its torus. In the second part each device sends its
  share through its host to the other slices. The program contains the second
  part as a `send` instruction, which names the kind of the exchange.

  Args:
    module: the program.
    computation: name of the computation that contains the instruction.
    i: the instruction.
    times: how often it runs in a step.
    spanning: (mesh axis that spans the slices, number of slices).
  """
  found = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
  if i.opcode != 'send' or not found:
    return None
  axis, num_slices = spanning
  kind = _NETWORK_KINDS.get(found[1], 'collective-permute')
  # The first array of the result is the one that is sent.
  size = i.shapes[0].bytes
  if kind == 'all-gather':  # The result has the shares of all slices.
    size *= num_slices
  return Transfer(
    kind, (axis,), size, times, tuple(range(num_slices)), i.op_name, True
  )
