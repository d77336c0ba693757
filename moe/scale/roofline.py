"""What a compiled step costs on its slice: products, memory, links.

Counted from the optimised program with its loops multiplied out. Two times come
of it, and a measured one lies between them where the program is limited by what
is counted here: without overlap, where each instruction takes the longer of its
products and its memory traffic and every transfer waits its turn; and with full
overlap, where the busiest resource sets the time. Not counted: work of the
vector units beyond their memory traffic, and the host. A program is one
slice's, whose chips the torus joins: nothing goes over the data centre's
network.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from moe.scale import hlo
from moe.scale.topology import Slice

KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'ragged-all-to-all', 'collective-permute', 'collective-broadcast',
)  # fmt: skip
# Time for a message to pass one chip.
HOP_SECONDS = 1e-6
# Instructions that move nothing: names for parts of what others made.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'after-all', 'partition-id', 'replica-id', 'call', 'conditional', 'iota',
  'copy-done', 'async-done', 'async-update', 'opt-barrier', 'custom-call-done',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One collective, as often as it runs.

  Attributes:
    kind: of `KINDS`.
    axes: mesh axes that its groups span.
    bytes: that a device puts in or gets out, whichever is more, each time; of
      a ragged exchange, whose buffers are larger than what they hold, whichever
      is less.
    times: it runs in a step.
    group: devices of the first group, by their place in the mesh.
    source: the path of JAX's operation.
  """

  kind: str
  axes: tuple[str, ...]
  bytes: int
  times: int
  group: tuple[int, ...]
  source: str

  @property
  def moved(self) -> float:
    """Bytes that each device sends, and as many that reach it, each time."""
    n = len(self.group)
    if self.kind == 'collective-permute':
      return self.bytes
    twice = 2 if self.kind == 'all-reduce' else 1
    return twice * self.bytes * (n - 1) / n


@dataclasses.dataclass(frozen=True)
class Work:
  """What a device does in a step.

  Attributes:
    flops: of matrix products.
    bytes: read from and written to HBM.
    instructions: (FLOPs, bytes, times) of each instruction.
    transfers: the collectives.
    cycles: the compiler's estimates, loops multiplied out.
    cycles_once: the same with each loop's body counted once.
    unknown_loops: loops counted once because their length is not fixed.
  """

  flops: float
  bytes: float
  instructions: tuple[tuple[float, float, int], ...]
  transfers: tuple[Transfer, ...]
  cycles: float
  cycles_once: float
  unknown_loops: tuple[str, ...]


def groups_of(attributes: str, num_devices: int) -> np.ndarray:
  """Replica groups [groups, members], in any of the four ways they are written.

  {{0,1},{2,3}}, [2,4]<=[4,2]T(1,0), mesh['a'=2,'b'=4] {'a'}, or pairs of a
  permutation, which become one group of two each.
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
  """Mesh axes along which the members of a group differ; parts of one too."""
  places = np.unravel_index(np.asarray(group), tuple(mesh_shape.values()))
  return tuple(
    axis
    for axis, place in zip(mesh_shape, places, strict=True)
    if len(set(place.tolist())) > 1
  )


def _collective_in(
  module: hlo.Module, computation: str, i: hlo.Instruction
) -> tuple[str, str, hlo.Instruction] | None:
  """(kind, computation, instruction) of the collective in an instruction."""
  kind = i.opcode.removesuffix('-start')
  if kind in KINDS:
    return kind, computation, i
  if i.opcode not in ('fusion', 'async-start') or not i.calls:
    return None
  name = i.calls if i.opcode == 'fusion' else module.behind(i)
  for inner in module.computations[name].values():
    found = _collective_in(module, name, inner)
    if found:
      # An all-reduce of which each device keeps a part: TPUs' reduce-scatter.
      scatters = i.calls.startswith('all-reduce-scatter')
      return ('reduce-scatter' if scatters else found[0], *found[1:])
  return None


def _transfer(module, found, times, mesh_shape) -> Transfer | None:
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
    # Rows, room for those that come, and four tables of places.
    given = made = min(sizes[0], shapes[0].bytes)
  num_bytes = given if kind in ('reduce-scatter', 'all-reduce') else made
  # Of a permutation's pairs, the one that reaches furthest says what it spans.
  spread = groups.max(axis=1) - groups.min(axis=1)
  group = tuple(int(d) for d in groups[int(np.argmax(spread))])
  return Transfer(
    kind, axes_of(group, mesh_shape), num_bytes, times, group, i.op_name
  )


def _read(
  module: hlo.Module, i: hlo.Instruction, place: int, whole: int
) -> int:
  """Bytes that a fusion reads of one operand: a slice where it slices."""
  if not i.calls:
    return whole
  inside = module.computations[i.calls].values()
  name = next(
    (
      p.name
      for p in inside
      if p.opcode == 'parameter' and int(p.attributes) == place
    ),
    None,
  )
  users, names = [], {name}
  for user in inside:
    if names & set(user.operands):
      if user.opcode == 'bitcast':
        names.add(user.name)
      else:
        users.append(user)
  total = 0
  for user in users:
    if user.opcode in ('dynamic-slice', 'gather', 'slice'):
      total += user.shapes[0].bytes
    elif user.opcode == 'dynamic-update-slice' and user.operands[0] in names:
      total += 0  # written in place
    elif user.opcode == 'fusion':
      total += _read(
        module,
        user,
        list(user.operands).index((names & set(user.operands)).pop()),
        whole,
      )
    else:
      return whole
  return min(total, whole)


def _written(module: hlo.Module, i: hlo.Instruction) -> int:
  """Bytes that an instruction writes to HBM."""
  whole = sum(s.bytes for s in i.shapes if s.space == 0)
  if i.opcode == 'dynamic-update-slice':
    return 0  # counted as what it reads
  if i.opcode != 'fusion':
    return whole
  inside, root = module.computations[i.calls], module.root(i.calls)
  if root.opcode == 'bitcast':
    root = inside.get(root.operands[0], root)
  parts = (
    [inside[o] for o in root.operands] if root.opcode == 'tuple' else [root]
  )
  total = 0
  for part, shape in zip(parts, i.shapes, strict=False):
    if shape.space:
      continue
    is_update = part.opcode == 'dynamic-update-slice'
    total += (
      inside[part.operands[1]].shapes[0].bytes if is_update else shape.bytes
    )
  return total


def _beside(module: hlo.Module, start: hlo.Instruction) -> int:
  """Bytes of what an asynchronous start runs beside the rest."""
  # After code generation the start itself shows neither operands nor result.
  run = module.computations[start.calls].values()
  made = sum(s.bytes for s in module.root(start.calls).shapes if not s.space)
  if any(word in start.name for word in ('gather', 'scatter', 'slice')):
    return 2 * made
  given = [i.shapes[0] for i in run if i.opcode == 'parameter']
  return made + sum(s.bytes for s in given if not s.space)


def _hbm_bytes(module: hlo.Module, computation: str, i: hlo.Instruction) -> int:
  """Bytes that one instruction moves to or from HBM."""
  if i.opcode in _FREE or i.opcode.endswith('-done'):
    return 0
  inside = module.computations[computation]
  sources = [inside[o] for o in i.operands if o in inside]
  if i.opcode == 'async-start' and i.calls:
    return _beside(module, i)
  if i.opcode == 'copy-start':
    near = [sources[0].shapes[0], i.shapes[0]]
    return sum(s.bytes for s in near if s.space == 0)
  if i.opcode in ('dynamic-slice', 'gather', 'slice'):
    return 2 * sum(s.bytes for s in i.shapes if s.space == 0)
  if i.opcode == 'dynamic-update-slice':
    return 2 * sources[1].shapes[0].bytes
  total = _written(module, i)
  for place, source in enumerate(sources):
    whole = sum(s.bytes for s in source.shapes if s.space == 0)
    total += _read(module, i, place, whole) if whole else 0
  return total


def work(module: hlo.Module, mesh_shape: dict[str, int]) -> Work:
  """What one device does in a step of a compiled program.

  Args:
    module: the optimised program, after code generation where its estimates of
      cycles are wanted.
    mesh_shape: devices by mesh axis, in the order of the mesh.
  """
  instructions, transfers = [], []
  cycles = cycles_once = 0.0
  for computation, i, times in hlo.executed(module):
    estimate = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
    if estimate:
      cycles += int(estimate[1]) * times
      cycles_once += int(estimate[1])
    found = _collective_in(module, computation, i)
    if found:
      transfer = _transfer(module, found, times, mesh_shape)
      if transfer:
        transfers.append(transfer)
      if i.opcode != 'fusion':
        continue
    flops = hlo.product_flops(module, computation, i)
    num_bytes = _hbm_bytes(module, computation, i)
    if flops or num_bytes:
      instructions.append((flops, num_bytes, times))
  return Work(
    sum(f * n for f, _, n in instructions),
    sum(b * n for _, b, n in instructions),
    tuple(instructions),
    tuple(transfers),
    cycles,
    cycles_once,
    tuple(hlo.loops_of_unknown_length(module)),
  )


@dataclasses.dataclass(frozen=True)
class Span:
  """How a group lies along one dim of the torus.

  Attributes:
    dim: of the torus.
    members: places it takes there.
    stride: distance of neighbours; as many groups share each link.
    is_ring: whether it takes the whole of a dim that wraps around.
  """

  dim: int
  members: int
  stride: int
  is_ring: bool


def coordinates(devices: Sequence) -> np.ndarray:
  """[devices, dims] places in the torus, the device within its chip last."""
  return np.array([[*d.coords, d.core_on_chip] for d in devices])


def spans(group_coords: np.ndarray, slice_: Slice) -> list[Span]:
  """The dims of the torus that a group of devices uses."""
  found = []
  for dim, (length, wraps) in enumerate(
    zip(slice_.shape, slice_.wraps, strict=True)
  ):
    places = np.unique(group_coords[:, dim])
    if len(places) == 1:
      continue
    stride = int(np.gcd.reduce(np.diff(places)))
    is_ring = wraps and len(places) * stride == length
    found.append(Span(dim, len(places), stride, is_ring))
  return found


def transfer_seconds(
  transfer: Transfer, coords: np.ndarray, slice_: Slice
) -> tuple[float, dict[int, float]]:
  """Seconds of one collective, and how long it keeps each torus dim busy.

  Gathers and reductions run around all rings of the group at once, in both
  directions: bytes / (2 x links' bandwidth x dims), half of that along a line.
  In an all-to-all over a ring of n a byte travels n / 4 links on average and a
  device has two of them, so that a dim takes bytes x n / (8 x bandwidth), along
  a line twice that (bisection); the longest dim sets the time.

  Args:
    transfer: the collective.
    coords: of all devices, see `coordinates`.
    slice_: the chips.
  """
  chip = slice_.chip
  group = coords[list(transfer.group)]
  used = spans(group, slice_)
  # Devices of one chip share its links.
  bandwidth = chip.link_bandwidth / chip.devices
  if not used:
    # Within a chip: as fast as its memory.
    return transfer.moved * chip.devices / chip.hbm_bandwidth, {}
  hops = sum(s.members // 2 if s.is_ring else s.members - 1 for s in used)
  latency = HOP_SECONDS * hops * (2 if transfer.kind == 'all-reduce' else 1)
  if 'all-to-all' in transfer.kind:
    busy = {
      s.dim: transfer.bytes * s.members * s.stride
      / ((8 if s.is_ring else 4) * bandwidth)
      for s in used
    }  # fmt: skip
    return max(busy.values()) + latency, busy
  if transfer.kind == 'collective-permute':
    seconds = transfer.bytes * max(s.stride for s in used) / bandwidth
  else:
    lanes = sum((2 if s.is_ring else 1) / s.stride for s in used)
    seconds = transfer.moved / (bandwidth * lanes)
  return seconds + latency, {s.dim: seconds for s in used}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of a step.

  Attributes:
    no_overlap: see the head of this file.
    full_overlap: likewise.
    compute: part of `no_overlap` that products or memory take.
    busy: resource -> seconds in which it works: 'matrix unit', 'HBM', 'torus x'
      and so on.
    by_transfer: seconds of each transfer, all times, as in `Work.transfers`.
  """

  no_overlap: float
  full_overlap: float
  compute: float
  busy: dict[str, float]
  by_transfer: tuple[float, ...]

  @property
  def bound(self) -> str:
    """The busiest resource."""
    return max(self.busy, key=self.busy.get)


def estimate(
  done: Work, devices: Sequence, slice_: Slice, dtype: str = 'bfloat16'
) -> Estimate:
  """Seconds of a step on a slice.

  Args:
    done: what a device does.
    devices: in the order of the mesh.
    slice_: the chips.
    dtype: of the products, whose peak counts.
  """
  chip = slice_.chip
  peak = chip.peak[dtype] / chip.devices
  hbm = chip.hbm_bandwidth / chip.devices
  coords = coordinates(devices)
  busy = {'matrix unit': done.flops / peak, 'HBM': done.bytes / hbm}
  busy |= {f'torus {"xyz"[d]}': 0.0 for d in range(len(slice_.shape))}
  compute = sum(max(f / peak, b / hbm) * n for f, b, n in done.instructions)
  by_transfer = []
  for transfer in done.transfers:
    seconds, dims = transfer_seconds(transfer, coords, slice_)
    by_transfer.append(seconds * transfer.times)
    for dim, taken in dims.items():
      busy[f'torus {"xyz"[dim]}'] += taken * transfer.times
  return Estimate(
    compute + sum(by_transfer),
    max(busy.values()),
    compute,
    busy,
    tuple(by_transfer),
  )
