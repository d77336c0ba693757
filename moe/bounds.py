"""Checks of arguments: each class calls them for its own arguments.

An error message names the argument, or the macro that sets it. The loader of
configurations adds the file and the line.
"""

import re
from collections.abc import Iterable, Sequence

# The largest seed. JAX cuts larger ones to 32 bits, so 2^32 would mean 0.
MAX_SEED = 2**32 - 1
_LARGEST_INT, _LARGEST_FLOAT = 2**31 - 1, 3.4e38


class OutOfRange(ValueError):
  """Raised for an argument that is out of its range.

  Attributes:
    name: name of the argument, or of the macro that sets it.
    value: the value that was set.
    rule: end of the message: what the value must be, and what to change.
  """

  def __init__(self, name: str, value: object, rule: str):
    super().__init__(f'{name}={value!r} {rule}')
    self.name, self.value, self.rule = name, value, rule


def at_least(least: int, name: str, value: int, meaning: str) -> None:
  """Raises OutOfRange if a size is too small.

  Args:
    least: smallest allowed value.
    name: name of the argument, or of the macro that sets it.
    value: the value that was set.
    meaning: words for the message: what the size is, or what `least` means.
  """
  within(name, value, meaning, least=least)


def within(
  name: str,
  value: float,
  meaning: str,
  *,
  least: float | None = None,
  above: float | None = None,
  most: float | None = None,
  below: float | None = None,
) -> None:
  """Raises OutOfRange unless a number lies within bounds.

  Infinity and NaN are always out of range. Without `most`, the largest number
  is 2^31 - 1 for an int and 3.4e38 for a float. Without `least`, the smallest
  number is the negative of this limit.

  Args:
    name: name of the argument, or of the macro that sets it.
    value: the value that was set.
    meaning: words for the message: what the number is, or what a bound means.
    least: smallest allowed value.
    above: the number must be larger than this.
    most: largest allowed value.
    below: the number must be smaller than this.
  """
  limit = _LARGEST_INT if isinstance(value, int) else _LARGEST_FLOAT
  # `not >=` is not the same as `<` here: every comparison with NaN is false.
  is_low = not value >= (-limit if least is None else least)
  is_low = is_low or (above is not None and not value > above)
  is_high = not value <= (limit if most is None else most)
  is_high = is_high or (below is not None and not value < below)
  if not is_low and not is_high:
    return
  if is_high and most is None and below is None:
    most = limit
  if is_low and least is None and above is None:
    least = -limit
  given = {'at least': least, 'above': above, 'at most': most, 'below': below}
  rule = ' and '.join(f'{w} {b}' for w, b in given.items() if b is not None)
  advice = 'lower it' if is_high else 'raise it'
  raise OutOfRange(name, value, f'must be {rule} ({meaning}): {advice}.')


def one_of(name: str, value: str, known: Iterable[str]) -> None:
  """Raises OutOfRange unless a value is one of the known choices."""
  if value not in known:
    raise OutOfRange(
      name, value, f'must be one of {", ".join(known)}: choose one.'
    )


def seed(name: str, value: int) -> None:
  """Raises OutOfRange unless a seed is from 0 to `MAX_SEED`."""
  within(name, value, 'a whole number of 32 bits', least=0, most=MAX_SEED)


def regular_expression(name: str, pattern: str) -> None:
  """Raises OutOfRange if a regular expression is invalid."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise OutOfRange(
      name,
      pattern,
      f'must be a regular expression ({error}): mend it, or put a backslash'
      ' before a character that stands for itself.',
    ) from error


def one_for_each(
  name: str, rates: Sequence[float], sources: Sequence[str]
) -> None:
  """Raises ValueError unless `rates` is empty or has a rate for each source."""
  if rates and len(rates) != len(sources):
    raise ValueError(
      f'{name}={rates} must have a rate for each of {", ".join(sources)}, or'
      ' be ().'
    )
