"""Tasks whose documents hold codes beside text, such as the codes of images.

The codes of a feature count from 0 inside a named range of ids.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe.data.records import Feature
from tasks import registry
from tasks.text_files import Record


@dataclasses.dataclass(eq=False)
class CodeTask(registry.Task):
  """A declared task that has features which are not text.

  Attributes:
    kinds: describes each feature that is not text, by name.
  """

  kinds: Mapping[str, Feature] = dataclasses.field(default_factory=dict)


def add_task(
  name: str,
  source: registry.RecordSource,
  document_fn: Callable[[Record], Sequence[str | np.ndarray] | None],
  features: Sequence[str],
  kinds: Mapping[str, Feature],
) -> None:
  """Declares a task of text and codes.

  Args:
    name: the task's name.
    source: gives the records.
    document_fn: record -> for each feature, a text or an array of codes from 0;
      None leaves the record out.
    features: 'targets' alone, or 'inputs' (given, not scored) and 'targets';
      then the names of arrays that have one value for each token.
    kinds: describes each feature that is not text, by name.

  Raises:
    ValueError: if the name is taken, or if a feature other than 'inputs' and
      'targets' has no kind.
  """
  if name in registry.TASKS or name in registry.MIXTURES:
    raise ValueError(
      f'A task or mixture must have a name of its own, got {name!r} again:'
      ' choose another name.'
    )
  unknown = {*features} - {'inputs', 'targets', *kinds}
  if unknown:
    raise ValueError(
      f'Every feature of {name} beside inputs and targets must have a kind, got'
      f' none for {", ".join(sorted(unknown))}: add Feature() to kinds for it.'
    )
  modules = [document_fn.__module__, type(source).__module__, __name__]
  registry.TASKS[name] = CodeTask(
    name, source, tuple(features), document_fn, modules, kinds
  )
