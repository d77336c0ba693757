"""Counts the work of one device in a step, from the compiled program.

The work consists of matrix products, traffic to and from HBM, and collectives.
The body of a loop counts as often as it runs. Operations of the vector units
count only as memory traffic.
"""

import dataclasses

from moe.scale import collectives, hlo, hlo_flops, hlo_loops
from moe.scale.collectives import Transfer

# We count these instructions without memory traffic. Some only rename the
# result of another instruction; the traffic of the others is small or counted
# elsewhere.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'after-all', 'partition-id', 'replica-id', 'call', 'conditional', 'iota',
  'copy-done', 'async-done', 'async-update', 'opt-barrier', 'custom-call-done',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StepWork:
  """The work of one device in a step.

  Attributes:
    flops: FLOPs of matrix products.
    bytes: bytes read from and written to HBM.
    instructions: (FLOPs, bytes, times) of each instruction.
    transfers: the collectives.
    cycles: the compiler's estimate of cycles, with loops multiplied out.
    cycles_once: the same estimate, but the body of each loop counts once.
    unknown_loops: loops whose number of iterations is unknown; they count once.
  """

  flops: float
  bytes: float
  instructions: tuple[tuple[float, float, int], ...]
  transfers: tuple[Transfer, ...]
  cycles: float
  cycles_once: float
  unknown_loops: tuple[str, ...]


def _read(
  module: hlo.Module, i: hlo.Instruction, place: int, whole: int
) -> int:
  """Bytes that an instruction reads from its operand number `place`.

  The operand has `whole` bytes. A fusion that only slices the operand reads
  only the slices.
  """
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
      total += 0  # The update is in place, so nothing is read.
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
    return 0  # `_hbm_bytes` counts its traffic.
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
  """Bytes of memory traffic of an asynchronous computation."""
  # After code generation the start instruction has no operands and no result,
  # so we read the called computation.
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


def count(
  module: hlo.Module,
  mesh_shape: dict[str, int],
  spanning: tuple[str, int] | None = None,
) -> StepWork:
  """Counts the work of one device in a step of a compiled program.

  Args:
    module: the optimised program. It has estimates of cycles only if its text
      was written after code generation.
    mesh_shape: devices of one slice by mesh axis, in the order of the mesh.
    spanning: (mesh axis that spans the slices, number of slices); None if there
      is one slice.
  """
  instructions, transfers = [], []
  cycles = cycles_once = 0.0
  for computation, i, times in hlo_loops.executed(module):
    cycles += (i.estimated_cycles or 0) * times
    cycles_once += i.estimated_cycles or 0
    found = collectives.find(module, computation, i)
    if found:
      transfer = collectives.transfer(module, found, times, mesh_shape)
      if transfer:
        transfers.append(transfer)
      if i.opcode != 'fusion':
        continue
    if spanning:
      sent = collectives.network_transfer(
        module, computation, i, times, spanning
      )
      transfers += [sent] if sent else []
    flops = hlo_flops.product_flops(module, computation, i)
    num_bytes = _hbm_bytes(module, computation, i)
    if flops or num_bytes:
      instructions.append((flops, num_bytes, times))
  return StepWork(
    sum(f * n for f, _, n in instructions),
    sum(b * n for _, b, n in instructions),
    tuple(instructions),
    tuple(transfers),
    cycles,
    cycles_once,
    tuple(hlo_loops.loops_of_unknown_length(module)),
  )
