"""Lists the arrays in a device's memory while a program runs, from XLA's dump.

The dump has two texts about memory. The buffer assignment gives the offset of
each value. The live ranges give the first and the last instruction between
which a value exists.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Matches '<number name @place> (size=bytes,offset=bytes): dtype[dims]'.
_VALUE = re.compile(
  r'value: <\d+ (\S+)[^>]*> \(size=(\d+),offset=(\d+)\):'
  r' ([a-z]+\d*)\[([\d,]*)\]'
)
_LIFETIME = re.compile(r'^ +(\S+):(\d+)-(\d+)$', re.MULTILINE)
_TEMPORARY = re.compile(r'\d+: size \d+, page \d+, preallocated-temp')


class Temporary(NamedTuple):
  """An array among the temporaries of one device.

  Attributes:
    name: the instruction that makes it.
    shape: type and dims as HLO writes them.
    dims: the dims as numbers.
    bytes: its bytes with padding.
    offset: offset of its first byte; arrays with the same offset share memory.
    first, last: numbers of the instructions between which it exists.
  """

  name: str
  shape: str
  dims: tuple[int, ...]
  bytes: int
  offset: int
  first: int
  last: int


def temporaries(buffers: str, lifetimes: str) -> list[Temporary]:
  """Reads the arrays in main memory that are neither inputs nor outputs.

  Args:
    buffers: the compiler's buffer assignment.
    lifetimes: the compiler's live ranges.
  """
  lives = {
    name.removesuffix('{}'): (int(first), int(last))
    for name, first, last in _LIFETIME.findall(lifetimes)
  }
  # The first line of an allocation outside main memory has a color after the
  # size, so it does not match `_TEMPORARY`.
  parts = [
    part
    for part in re.split('^allocation ', buffers, flags=re.MULTILINE)
    if _TEMPORARY.match(part)
  ]
  return [
    Temporary(
      name,
      f'{dtype}[{dims}]',
      tuple(int(d) for d in dims.split(',') if d),
      int(size),
      int(offset),
      *lives[name],
    )
    for part in parts
    for name, size, offset, dtype, dims in _VALUE.findall(part)
    if name in lives
  ]


def most_alive(values: list[Temporary]) -> list[Temporary]:
  """The live values at the moment of peak memory, the largest first."""

  def alive(moment: int) -> list[Temporary]:
    # Values with the same offset share memory, so only the largest counts.
    at = {}
    for value in sorted(values, key=lambda v: v.bytes):
      if value.first <= moment <= value.last:
        at[value.offset] = value
    return sorted(at.values(), key=lambda v: -v.bytes)

  # The sum of bytes is largest at a moment where a value begins to exist.
  moments = {value.first for value in values}
  return max(map(alive, moments), key=_bytes_of, default=[])


def account(
  values: list[Temporary],
  temp_bytes: int,
  is_weight: Callable[[Temporary], bool],
) -> dict[str, Any]:
  """Sums the temporary bytes of a program on one device, by their content.

  Args:
    values: the temporaries.
    temp_bytes: bytes that the compiler allocates for the temporaries.
    is_weight: whether a value is a gradient of weights; all other values are
      rows of tokens.

  Returns:
    'temp_bytes': the allocated bytes.
    'weight_sized_bytes': peak bytes of gradients alone.
    'row_bytes': peak bytes of all other values alone.
    'gap_bytes': allocated bytes minus peak bytes of all values.
    'at_peak': the largest values that exist at the peak of all values.
  """
  peak = most_alive(values)
  most = lambda chosen: _bytes_of(most_alive(list(chosen)))
  return {
    'temp_bytes': temp_bytes,
    'weight_sized_bytes': most(filter(is_weight, values)),
    'row_bytes': most(v for v in values if not is_weight(v)),
    'gap_bytes': temp_bytes - _bytes_of(peak),
    'at_peak': [
      {'name': v.name, 'shape': v.shape, 'bytes': v.bytes} for v in peak[:10]
    ],
  }


def _bytes_of(values: Iterable[Temporary]) -> int:
  return sum(value.bytes for value in values)
