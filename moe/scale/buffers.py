"""What lies in a device's memory while a program runs, as its compiler says.

XLA's dump has two texts about memory: the assignment of buffers says where each
value lies, the live ranges say from when to when it is needed.
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
  """What a program keeps in a device's main memory beside input and output.

  Args:
    buffers: the compiler's assignment of buffers.
    lifetimes: the compiler's live ranges.
  """
  lives = {
    name.removesuffix('{}'): (int(first), int(last))
    for name, first, last in _LIFETIME.findall(lifetimes)
  }
  # An allocation in another memory than the main one has a color, and its head
  # does not match.
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
  """The values needed when they take most bytes in all, the largest first."""

  def alive(moment: int) -> list[Temporary]:
    # Of values that share their memory, the largest stands for all.
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
  """The temporary bytes of a program on one device, by what they hold.

  Args:
    values: the temporaries.
    temp_bytes: bytes that the compiler sets aside for them.
    is_weight: whether a value is a gradient on its way, not rows.

  Returns:
    'temp_bytes' in all; 'weight_sized_bytes', the most that gradients take at a
    moment; 'row_bytes', the most that all others take; 'gap_bytes', by which
    the whole is larger than what is ever needed at once; 'at_peak', what is
    needed then.
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
