"""Formats numbers as text, in units that keep the numbers short."""

from moe.scale.topology import GIB

_PREFIXES = ((1e24, 'Y'), (1e21, 'Z'), (1e18, 'E'), (1e15, 'P'), (1e12, 'T'),
             (1e9, 'G'), (1e6, 'M'), (1e3, 'k'))  # fmt: skip
_BYTES = ((GIB, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB'))
_SECONDS = ((1.0, 's'), (1e-3, 'ms'), (1e-6, 'us'))


def short(value: float, unit: str = '') -> str:
  """Formats four digits and a prefix: 1748943388672 FLOP are '1.749 TFLOP'."""
  for size, prefix in _PREFIXES:
    if abs(value) >= size:
      return f'{value / size:.4g} {prefix}{unit}'
  return f'{value:.4g} {unit}'.rstrip()


def in_bytes(value: float) -> str:
  """Bytes in GiB, or in a smaller unit if they are less than one GiB."""
  for size, unit in _BYTES:
    if value >= size:
      return f'{value / size:,.2f} {unit}'
  return f'{value:,.0f} bytes'


def in_seconds(value: float) -> str:
  """Seconds, or a smaller unit if they are less than one second."""
  size, unit = next((u for u in _SECONDS if value >= u[0]), _SECONDS[-1])
  return f'{value / size:.4g} {unit}'


def in_hours(value: float) -> str:
  """Hours with a decimal prefix, or seconds if the time is below 0.1 hours."""
  return short(value, 'h') if value >= 0.1 else in_seconds(3600 * value)


def counted(number: int, noun: str) -> str:
  """A number with its noun, singular or plural: '1 step', '2,000 steps'."""
  return f'{number:,} {noun}' if number == 1 else f'{number:,} {noun}s'
