"""Declares tasks whose documents hold codes beside text, such as image codes.

A code is a number from 0. It stands for an id in a named range, such as
'image'.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe.data.records import Feature
from tasks import registry
from tasks.text_files import Record


@dataclasses.dataclass(eq=False)
class CodeTask(registry.Task):
  """A declared task with features that are not text.

  Attributes:
    kinds: name of each feature that is not text -> its description.
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
    document_fn: record -> a text or an array for each feature, in the order of
      `features`, or None to leave the record out.
    features: 'targets' alone, or 'inputs' (a prompt, not scored) and 'targets'.
      Names of further arrays follow, which have one entry for each token of the
      document or of one feature, see `Feature.of`.
    kinds: name of each feature that is not text -> its description.

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
