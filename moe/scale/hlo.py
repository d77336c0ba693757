"""Reads the text of a compiled program: instructions, loops, called parts.

XLA's own `cost_analysis()` counts the body of a loop once, so that a model
scanned over its layers looks one layer deep. The text says all that is needed
to multiply out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

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
  """One array: dtype name, dims, and the memory it lies in (0 is HBM)."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """Numbers in the array."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Bytes without the padding of tiles."""
    bits = _DTYPE_BITS.get(self.dtype, 8 if self.dtype.startswith('f8') else 0)
    return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: unique in its computation.
    opcode: such as 'fusion'.
    shapes: of the result; several for a tuple.
    operands: names.
    attributes: the rest of the line; for constants and parameters, what stands
      in the brackets.
    is_root: whether the computation returns it.
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
    """What follows 'name=' up to a comma or a space."""
    found = re.search(rf'\b{name}=%?([^\s,]+)', self.attributes)
    return found and found.group(1)

  @property
  def op_name(self) -> str:
    """The path of JAX's operation, '' where the compiler made its own."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else ''


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program: computations by name, and the one it begins with."""

  computations: dict[str, Computation]
  entry: str

  def root(self, computation: str) -> Instruction:
    """What a computation returns."""
    instructions = self.computations[computation].values()
    return next(i for i in reversed(instructions) if i.is_root)

  def behind(self, start: Instruction) -> str:
    """The computation that an asynchronous start leads to.

    What a sparse core does is wrapped in calls, one in another.
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
  """Place of the bracket that closes the one at `start`."""
  depth = 0
  for found in re.finditer(r'[()]', text[start:]):
    depth += 1 if found.group() == '(' else -1
    if depth == 0:
      return start + found.start()
  return len(text) - 1


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """All arrays of a type such as '(bf16[2,4]{1,0:T(8,128)S(1)}, s32[])'."""
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
  """Reads the text of an optimised module.

  Raises:
    ValueError: if it has no ENTRY computation.
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


_PASSED_ON = (
  'copy',
  'bitcast',
  'convert',
  'reshape',
  'copy-start',
  'copy-done',
)


class _Loops:
  """Trip counts of loops: from the annotation, or from start and bound."""

  def __init__(self, module: Module):
    self._module = module

  def trips(self, loop: Instruction, caller: str) -> int | None:
    """Times that the body runs; None where it is not fixed."""
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

  def _compared(self, condition: str):
    """((left, right), direction) of the comparison that ends a loop."""
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

  def _source(self, computation: str, name: str):
    """('constant', value), ('tuple', index) or ('parameter', index)."""
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
    """What the body adds to the counter; 1 where it can't be read."""
    root = self._module.root(body)
    if root.opcode != 'tuple':
      return 1
    add = self._module.computations[body].get(root.operands[index])
    if add is None or add.opcode != 'add':
      return 1
    steps = [self._constant(body, o) for o in add.operands]
    return next((s for s in steps if s), 1)


def executed(module: Module) -> Iterator[tuple[str, Instruction, int]]:
  """Every instruction that runs, with its computation and how many times.

  Bodies of loops are multiplied out; of a conditional every branch counts; what
  a fusion or an asynchronous start runs is left to the reader. A loop of
  unknown length counts once.
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
  """Names of loops that `executed` counts once for want of a trip count."""
  loops = _Loops(module)
  return [
    i.name
    for computation, i, _ in executed(module)
    if i.opcode == 'while' and loops.trips(i, computation) is None
  ]


def _numbers(window: str, key: str, dims: int, default: int) -> list[int]:
  found = re.search(rf'\b{key}=([-\dx_]+)', window)
  if not found:
    return [default] * dims
  return [int(n) for n in found.group(1).split('x')]


@functools.lru_cache(maxsize=4096)
def _valid_pairs(
  out: int, kernel: int, base: int, stride: int, pad: int, dilations: tuple
) -> int:
  """Pairs of output and kernel places that meet an element of the input."""
  base_dilation, window_dilation = dilations
  first_K1 = np.arange(kernel)[:, None] * window_dilation - pad
  place_KO = first_K1 + np.arange(out) * stride
  inside_KO = (place_KO >= 0) & (place_KO <= (base - 1) * base_dilation)
  return int(np.sum(inside_KO & (place_KO % base_dilation == 0)))


def _convolution_flops(
  i: Instruction, lhs: Shape, rhs: Shape, window: str
) -> int:
  left, kernel, result = re.split(r'_|->', i.attribute('dim_labels'))
  out = i.shapes[0].dims
  spatial = [c for c in result if c.isdigit()]
  n = len(spatial)
  size = lambda dims, labels, c: dims[labels.index(c)]
  strides = _numbers(window, 'stride', n, 1)
  lhs_dilate = _numbers(window, 'lhs_dilate', n, 1)
  rhs_dilate = _numbers(window, 'rhs_dilate', n, 1)
  pads = re.search(r'\bpad=([-\dx_]+)', window)
  lows = (
    [int(p.split('_')[0]) for p in pads.group(1).split('x')]
    if pads
    else [0] * n
  )
  flops = 2 * size(rhs.dims, kernel, 'i')
  flops *= size(out, result, 'b') * size(out, result, 'f')
  for c in spatial:
    d = int(c)
    flops *= _valid_pairs(
      size(out, result, c),
      size(rhs.dims, kernel, c),
      size(lhs.dims, left, c),
      strides[d],
      lows[d],
      (lhs_dilate[d], rhs_dilate[d]),
    )
  return flops


_SPLASH = re.compile(r'splash_m[hq]a_(fwd|dq|dkv)')
# Products of splash attention's kernels: how many sum over or make the width of
# queries and keys, and how many that of values. Scores are made in each of the
# three; the gradient of probabilities in both of the backward ones.
_SPLASH_PRODUCTS = {'fwd': (1, 1), 'dq': (2, 1), 'dkv': (2, 2)}


def splash_share(T: int, S: int, tiles: tuple[int, int]) -> float:
  """Of [T, S] scores, those in tiles that splash attention computes.

  The queries are the last T of the S tokens, of which each sees itself and what
  is before. Tiles that hold nothing to be seen are skipped. What a block sees
  of its later tokens is not in it.

  Args:
    T: queries.
    S: keys.
    tiles: (tiles of queries, tiles of keys) of the kernel.
  """
  rows, columns = T // tiles[0], S // tiles[1]
  last = S - T + (np.arange(tiles[0]) + 1) * rows - 1
  return float(np.sum(last // columns + 1)) / math.prod(tiles)


def _splash_flops(module: Module, computation: str, i: Instruction) -> int:
  """FLOPs of a splash attention kernel, which the program does not tell.

  Its first operands are two tables of integers with a number for each tile of
  scores, then come queries, keys and values, [..., heads, tokens, width].
  """
  kind = _SPLASH.search(i.name).group(1)
  inside = module.computations[computation]
  shapes = [inside[o].shapes[0] for o in i.operands]
  arrays = [s.dims for s in shapes if s.dtype in ('bf16', 'f32')]
  query, key, value = arrays[:3]
  share = splash_share(query[-2], key[-2], shapes[0].dims[-2:])
  of_keys, of_values = _SPLASH_PRODUCTS[kind]
  width = of_keys * query[-1] + of_values * value[-1]
  return round(2 * math.prod(query[:-1]) * key[-2] * share * width)


def product_flops(module: Module, computation: str, i: Instruction) -> int:
  """FLOPs of matrix products in one instruction, and in what it calls.

  A TPU's products are convolutions; the batch dims of an einsum become spatial
  dims in which most places of the window meet padding, which costs nothing.
  Of kernels, splash attention is counted by its shapes, others by what they say
  of themselves.
  """
  if i.opcode in ('convolution', 'dot'):
    inside = module.computations[computation]
    lhs, rhs = (inside[o].shapes[0] for o in i.operands[:2])
    if i.opcode == 'convolution':
      window = re.search(r'window=\{([^}]*)\}', i.attributes)
      return _convolution_flops(i, lhs, rhs, window.group(1) if window else '')
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', i.attributes)
    dims = [int(d) for d in contracted.group(1).split(',') if d]
    return 2 * i.shapes[0].size * math.prod(lhs.dims[d] for d in dims)
  if i.opcode == 'custom-call':
    if _SPLASH.search(i.name):
      return _splash_flops(module, computation, i)
    counted = re.search(r'"flops":"?(\d+)', i.attributes)
    return int(counted.group(1)) if counted else 0
  if i.opcode in ('fusion', 'async-start') and i.calls:
    name = i.calls if i.opcode == 'fusion' else module.behind(i)
    return sum(
      product_flops(module, name, inner)
      for inner in module.computations[name].values()
    )
  return 0
