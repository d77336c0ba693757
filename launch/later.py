"""Modules that are imported when they are needed.

Every verb answers --help at once, and JAX, Orbax and Matplotlib take seconds to
import. So verbs name the modules that need these at the head of the file, but
import them later.
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
