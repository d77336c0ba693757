"""Checks of a layer's own sizes and choices, by the macros that set them."""

from collections.abc import Iterable


def at_least(least: int, macro: str, value: int, meaning: str) -> None:
  """Raises ValueError if a size is too small.

  Args:
    least: the smallest value that means something.
    macro: the name under which a configuration sets it.
    value: what was set.
    meaning: what the size is, or what the least value does.
  """
  if value < least:
    raise ValueError(
      f'{macro}={value} must be at least {least} ({meaning}): raise it.'
    )


def one_of(macro: str, value: str, known: Iterable[str]) -> None:
  """Raises ValueError if a choice is not among those that are known."""
  if value not in known:
    raise ValueError(
      f'{macro}={value!r} must be one of {", ".join(known)}: choose one.'
    )
