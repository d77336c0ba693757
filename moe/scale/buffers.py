"""The arrays in a device's memory while a program runs, by its compiler.

XLA's dump has two texts about memory: the buffer assignment gives the offset of
each value, and the live ranges give the first and last instruction that need
it.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# '<number name @place> (size=bytes,offset=bytes): dtype[dims]'
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
    offset: bytes before it; arrays at one offset share their memory.
    first, last: instructions between which it is needed.
  """

  name: str
  shape: str
  dims: tuple[int, ...]
  bytes: int
  offset: int
  first: int
  last: int


def temporaries(buffers: str, lifetimes: str) -> list[Temporary]:
  """The arrays in a device's main memory that are neither input nor output.

  Args:
    buffers: the compiler's buffer assignment.
    lifetimes: the compiler's live ranges.
  """
  lives = {
    name.removesuffix('{}'): (int(first), int(last))
    for name, first, last in _LIFETIME.findall(lifetimes)
  }
  # The head of an allocation outside main memory has a color after its size, so
  # it does not match.
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
    # Values at one offset share their memory, so only the largest counts.
    at = {}
    for value in sorted(values, key=lambda v: v.bytes):
      if value.first <= moment <= value.last:
        at[value.offset] = value
    return sorted(at.values(), key=lambda v: -v.bytes)

  # The sum can only grow where a value begins.
  moments = {value.first for value in values}
  return max(map(alive, moments), key=_bytes_of, default=[])


def account(
  values: list[Temporary],
  temp_bytes: int,
  is_weight: Callable[[Temporary], bool],
) -> dict[str, Any]:
  """The temporary bytes of a program on one device, by their content.

  Args:
    values: the temporaries.
    temp_bytes: bytes that the compiler allocates for them.
    is_weight: whether a value is a gradient of weights and not rows of tokens.

  Returns:
    'temp_bytes': the allocated bytes; 'weight_sized_bytes': the most that
    gradients take at one moment; 'row_bytes': the most that all other values
    take; 'gap_bytes': allocated bytes minus the peak of live bytes; 'at_peak':
    the largest values that are live at that peak.
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
