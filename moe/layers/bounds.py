"""Checks of a layer's sizes and choices, with errors that name the macros."""

from collections.abc import Iterable


def at_least(least: int, macro: str, value: int, meaning: str) -> None:
  """Raises ValueError if a size is too small.

  Args:
    least: the smallest value that is allowed.
    macro: the name by which a configuration sets the size.
    value: the value that was set.
    meaning: what the size is, or what the smallest value means.
  """
  if value < least:
    raise ValueError(
      f'{macro}={value} must be at least {least} ({meaning}): raise it.'
    )


def one_of(macro: str, value: str, known: Iterable[str]) -> None:
  """Raises ValueError if a choice is not one of the known ones."""
  if value not in known:
    raise ValueError(
      f'{macro}={value!r} must be one of {", ".join(known)}: choose one.'
    )
