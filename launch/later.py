"""Modules that are imported when they are needed.

Every command answers --help at once, but JAX, Orbax and Matplotlib take seconds
to import. So the head of a command's file only names the modules that need
them. A function imports such a module when it uses the module.
"""

import importlib
from typing import Any


class Later:
  """A module that is imported when one of its names is read.

  `scoring = Later('moe.runs.scoring')` is used like the module, but only inside
  functions, and not in their annotations.
  """

  def __init__(self, module: str):
    self._module = module

  def __getattr__(self, name: str) -> Any:
    return getattr(importlib.import_module(self._module), name)
