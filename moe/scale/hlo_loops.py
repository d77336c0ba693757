"""Finds how often each instruction of a compiled program runs.

XLA's own `cost_analysis()` counts the body of a loop once. So a model with a
scan over its layers seems to have one layer. We read the trip count of each
loop from the text of the program, and multiply the body by it.
"""

import re
from collections.abc import Iterator
from typing import Literal

from moe.scale.hlo import Instruction, Module

# The origin of a number in a program: ('constant', value), ('tuple', index) or
# ('parameter', index).
_Source = tuple[Literal['constant', 'tuple', 'parameter'], int]

_PASSED_ON = (
  'copy',
  'bitcast',
  'convert',
  'reshape',
  'copy-start',
  'copy-done',
)


class _Loops:
  """Trip counts of loops, from an annotation or from start, bound and step."""

  def __init__(self, module: Module):
    self._module = module

  def trips(self, loop: Instruction, caller: str) -> int | None:
    """The number of times that the body runs; None if it is unknown."""
    known = re.search(r'known_trip_count[^\d]*(\d+)', loop.attributes)
    if known:
      return int(known.group(1))
    condition = loop.attribute('condition')
    compared = self._compared(condition)
    if compared is None:
      return None
    (place, bound_side), direction = compared
    init = self._tuple_of(caller, loop.operands[0])
    value = lambda side: (
      side[1]
      if side[0] == 'constant'
      else (self._constant(caller, init[side[1]]) if init else None)
    )
    start, bound = value(place), value(bound_side)
    if start is None or bound is None or direction not in ('LT', 'LE'):
      return None
    step = self._step(loop.attribute('body'), place[1])
    return max(0, -(-(bound - start + (direction == 'LE')) // step))

  def _compared(self, condition: str) -> tuple[list[_Source], str] | None:
    """([origins of the left and the right side], direction) of a condition.

    None if the condition of the loop is no simple comparison.
    """
    root = self._module.root(condition)
    sides = [self._source(condition, o) for o in root.operands]
    if root.opcode == 'fusion':
      inner = self._module.root(root.calls)
      inside = [self._source(root.calls, o) for o in inner.operands]
      sides = [sides[s[1]] if s and s[0] == 'parameter' else s for s in inside]
      root = inner
    if root.opcode != 'compare' or len(sides) != 2 or None in sides:
      return None
    return sides, root.attribute('direction')

  def _source(self, computation: str, name: str) -> _Source | None:
    """The origin of an instruction's value; copies on the way are skipped."""
    instruction = self._module.computations[computation].get(name)
    while instruction is not None:
      if instruction.opcode == 'constant':
        found = re.fullmatch(r'-?\d+', instruction.attributes.strip())
        return ('constant', int(found.group())) if found else None
      if instruction.opcode == 'get-tuple-element':
        return 'tuple', int(instruction.attribute('index'))
      if instruction.opcode == 'parameter':
        return 'parameter', int(instruction.attributes)
      if instruction.opcode not in _PASSED_ON:
        return None
      name = instruction.operands[0]
      instruction = self._module.computations[computation].get(name)
    return None

  def _constant(self, computation: str, name: str) -> int | None:
    source = self._source(computation, name)
    return source[1] if source and source[0] == 'constant' else None

  def _tuple_of(self, computation: str, name: str) -> tuple[str, ...] | None:
    instruction = self._module.computations[computation][name]
    return instruction.operands if instruction.opcode == 'tuple' else None

  def _step(self, body: str, index: int) -> int:
    """The number that the body adds to the counter; 1 if it is unknown."""
    root = self._module.root(body)
    if root.opcode != 'tuple':
      return 1
    add = self._module.computations[body].get(root.operands[index])
    if add is None or add.opcode != 'add':
      return 1
    steps = [self._constant(body, o) for o in add.operands]
    return next((s for s in steps if s), 1)


def executed(module: Module) -> Iterator[tuple[str, Instruction, int]]:
  """Yields every instruction that runs, as (computation, instruction, times).

  An instruction in a loop has the trip count in its `times`; a loop of unknown
  length counts once. Every branch of a conditional counts. The instructions
  inside fusions and asynchronous starts are not yielded; the caller reads them
  itself.
  """
  loops = _Loops(module)

  def visit(computation: str, times: int):
    for instruction in module.computations[computation].values():
      yield computation, instruction, times
      if instruction.opcode == 'while':
        trips = loops.trips(instruction, computation)
        body = instruction.attribute('body')
        yield from visit(body, times * (1 if trips is None else trips))
      elif instruction.opcode == 'call':
        yield from visit(instruction.attribute('to_apply'), times)
      elif instruction.opcode == 'conditional':
        names = re.findall(
          r'(?:true_computation|false_computation)=%?([^\s,]+)',
          instruction.attributes,
        )
        branches = re.search(
          r'branch_computations=\{([^}]*)\}', instruction.attributes
        )
        if branches:
          names += [n.strip().lstrip('%') for n in branches[1].split(',')]
        for name in names:
          yield from visit(name, times)

  yield from visit(module.entry, 1)


def loops_of_unknown_length(module: Module) -> list[str]:
  """Names of loops without a known trip count, which `executed` counts once."""
  loops = _Loops(module)
  return [
    i.name
    for computation, i, _ in executed(module)
    if i.opcode == 'while' and loops.trips(i, computation) is None
  ]
