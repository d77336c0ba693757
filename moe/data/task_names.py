"""The error about a task that does not exist."""

import difflib
from collections.abc import Iterable


def check(name: str, names: Iterable[str]) -> None:
  """Raises ValueError with the nearest names if a name is not among `names`."""
  names = sorted(names)
  if name in names:
    return
  near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
  hint = f'did you mean {" or ".join(near)}? ' if near else ''
  raise ValueError(
    f'A task or mixture must be registered, got {name!r}: {hint}`python -m'
    ' launch.data list` shows all; name your own module with --task_module or'
    ' TASK_MODULES.'
  )
