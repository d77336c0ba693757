"""Makes the objects of a configuration from its bindings."""

import functools
from collections.abc import Callable, Iterable

from launch.configs import gin_values
from launch.configs.bindings import Binding


class Tree:
  """Bindings, and the objects that they describe.

  Attributes:
    macros: name -> value as written. The last binding counts.
    arguments: id of a target -> (target, {argument: value as written}). A
      target is a class or function.
    names: id of a target -> its name in gin.
  """

  def __init__(self, bindings: Iterable[Binding]):
    self.macros, self.arguments, self.names = {}, {}, {}
    self._partials, self._making = {}, []
    for b in bindings:
      if b.target is None:
        self.macros[b.argument] = b.value
        continue
      self.names.setdefault(id(b.target), b.name)
      _, bound = self.arguments.setdefault(id(b.target), (b.target, {}))
      bound[b.argument] = b.value

  def make(self, target: Callable) -> object:
    """Calls a class or function with its bound arguments.

    A reference @x becomes a partial of x. All references @x share one partial.
    A reference @x() becomes the object that x returns.
    """
    return target(**self._made_arguments(target))

  def bound(self, target: Callable) -> dict[str, object]:
    """The bound arguments of a target: argument -> value as written."""
    return self.arguments.get(id(target), (target, {}))[1]

  def _made_arguments(self, target) -> dict[str, object]:
    if target in self._making:
      name = self.names.get(id(target), target)
      raise ValueError(f"'{name}' must not be made of itself.")
    self._making.append(target)
    made = {name: self._made(v) for name, v in self.bound(target).items()}
    self._making.pop()
    return made

  def _made(self, value):
    if isinstance(value, gin_values.Macro):
      return self._made(self.macros[value.name])
    if isinstance(value, gin_values.Reference):
      target = value.target
      if value.is_called:
        return self.make(target)
      if id(target) not in self._partials:
        self._partials[id(target)] = functools.partial(
          target, **self._made_arguments(target)
        )
      return self._partials[id(target)]
    if isinstance(value, list | tuple):
      return type(value)(self._made(v) for v in value)
    if isinstance(value, dict):
      return {self._made(k): self._made(v) for k, v in value.items()}
    return value
