"""Reads the text of a compiled program: computations and their instructions."""

import dataclasses
import math
import re

_DTYPE_BITS = {
  'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16,
  's32': 32, 'u32': 32, 's64': 64, 'u64': 64, 'bf16': 16, 'f16': 16,
  'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128,
}  # fmt: skip
_SHAPE = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?')
_HEAD = re.compile(r'^(ENTRY )?%?([^\s(]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([^\s=]+) = ')
_NAME = re.compile(r'%([^\s,()]+)')
_CALLED = re.compile(r'\bcalled_computations=\{%?([^\s,}]+)')
_CALLS = re.compile(r'\bcalls=%?([^\s,]+)')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array: name of its dtype, dims, and number of its memory (0 is HBM)."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """The number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """The number of bytes, without the padding of tiles."""
    bits = _DTYPE_BITS.get(self.dtype, 8 if self.dtype.startswith('f8') else 0)
    return -(-self.size * bits // 8)

  def __str__(self):
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: a name that is unique in the computation.
    opcode: name of the operation, such as 'fusion'.
    shapes: the arrays of the result; a tuple has several.
    operands: names of the instructions whose results it reads.
    attributes: the rest of the line. For constants and parameters it is the
      text in the brackets: the value or the number.
    is_root: whether the computation returns its result.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @property
  def calls(self) -> str | None:
    """The computation that a fusion or an asynchronous start runs."""
    found = _CALLS.search(self.attributes)
    return found and found.group(1)

  def attribute(self, name: str) -> str | None:
    """The text after 'name=' up to a comma or a space."""
    found = re.search(rf'\b{name}=%?([^\s,]+)', self.attributes)
    return found and found.group(1)

  @property
  def op_name(self) -> str:
    """The path of JAX's operation; '' if the compiler added the instruction."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else ''

  @property
  def estimated_cycles(self) -> int | None:
    """The compiler's estimate of cycles.

    It is None before code generation and on CPUs.
    """
    found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    return int(found.group(1)) if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: name -> computation.
    entry: name of the computation that runs first and calls the others.
  """

  computations: dict[str, Computation]
  entry: str

  def root(self, computation: str) -> Instruction:
    """The instruction whose result a computation returns."""
    instructions = self.computations[computation].values()
    return next(i for i in reversed(instructions) if i.is_root)

  def behind(self, start: Instruction) -> str:
    """Finds the name of the computation that an asynchronous start runs.

    For a sparse core, the start calls this computation through a chain of other
    computations; we follow the chain to its end.
    """
    name = start.calls
    while True:
      root = self.root(name)
      inner = root.attribute('to_apply') if root.opcode == 'call' else None
      found = _CALLED.search(root.attributes)
      if root.opcode == 'custom-call' and found:
        inner = found.group(1)
      if inner not in self.computations:
        return name
      name = inner


def _closing(text: str, start: int) -> int:
  """The index of the closing bracket for the opening bracket at `start`."""
  depth = 0
  for found in re.finditer(r'[()]', text[start:]):
    depth += 1 if found.group() == '(' else -1
    if depth == 0:
      return start + found.start()
  return len(text) - 1


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """Reads all arrays of a type like '(bf16[2,4]{1,0:T(8,128)S(1)}, s32[])'."""
  shapes = []
  for dtype, dims, layout in _SHAPE.findall(text):
    space = re.search(r'S\((\d+)\)', layout)
    shapes.append(
      Shape(
        dtype,
        tuple(int(d) for d in dims.split(',') if d),
        int(space.group(1)) if space else 0,
      )
    )
  return tuple(shapes)


def _instruction(line: str) -> Instruction | None:
  head = _INSTRUCTION.match(line)
  if not head:
    return None
  rest = line[head.end() :]
  cut = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  shapes = parse_shapes(rest[:cut])
  rest = rest[cut:].lstrip()
  bracket = rest.index('(')
  end = _closing(rest, bracket)
  inside, opcode = rest[bracket + 1 : end], rest[:bracket]
  attributes = rest[end + 1 :]
  if opcode in ('constant', 'parameter'):
    attributes = inside
  return Instruction(
    head.group(2),
    opcode,
    shapes,
    tuple(_NAME.findall(inside)),
    attributes,
    bool(head.group(1)),
  )


def parse(text: str) -> Module:
  """Reads the text of an optimised HLO module.

  Raises:
    ValueError: if the text has no ENTRY computation.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if not line.startswith(' '):
      head = _HEAD.match(line)
      if head:
        current = computations[head.group(2)] = {}
        entry = head.group(2) if head.group(1) else entry
      continue
    if current is not None:
      instruction = _instruction(line)
      if instruction:
        current[instruction.name] = instruction
  if entry is None:
    raise ValueError(
      'the text must be an optimised HLO module with an ENTRY computation.'
    )
  return Module(computations, entry)
