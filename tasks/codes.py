"""Tasks of documents that are not text alone: codes of a range of ids."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe.data.records import Feature
from tasks import registry
from tasks.text_files import Record


@dataclasses.dataclass(eq=False)
class CodeTask(registry.Task):
  """A declared task, some of whose features are codes.

  Attributes:
    kinds: what each feature is that is no text.
  """

  kinds: Mapping[str, Feature] = dataclasses.field(default_factory=dict)


def add_task(
  name: str,
  source: registry.Source,
  document_fn: Callable[[Record], Sequence[str | np.ndarray] | None],
  features: Sequence[str],
  kinds: Mapping[str, Feature],
) -> None:
  """Declares a task of text and codes.

  Args:
    name: of the task.
    source: of records.
    document_fn: record -> a text, or an array of codes from 0, for each
      feature; None to leave the record out.
    features: 'targets', or 'inputs', which are given, and 'targets'; then names
      of arrays with a value for each token of both.
    kinds: what each feature is that is no text.

  Raises:
    ValueError: if the name is taken, or a feature has a name of its own and no
      kind.
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
      f' none for {", ".join(sorted(unknown))}: add Feature() for it.'
    )
  modules = [document_fn.__module__, type(source).__module__, __name__]
  registry.TASKS[name] = CodeTask(
    name, source, tuple(features), document_fn, modules, kinds
  )
