"""What the checkpoints of a run hold: steps, sizes, damage, records."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from moe.checkpoint import integrity, listing, restore


class StepSummary(NamedTuple):
  """One step of a run.

  Attributes:
    step: number of the step.
    bytes: size of its files.
    metrics: name -> number; one of them ranks the step.
    is_best: whether the step has the first rank.
    is_damaged: whether its record cannot be read.
  """

  step: int
  bytes: int
  metrics: dict[str, float]
  is_best: bool
  is_damaged: bool


def chosen(
  path: epath.PathLike, step: int | None
) -> tuple[epath.Path, list[int]]:
  """The directory of the steps, and the steps that the user means.

  Args:
    path: directory of a run, its `checkpoints`, or one step in there.
    step: the step that is asked for; by default the one that `path` names, or
      all steps in ascending order.

  Raises:
    ValueError: if there is no such step.
  """
  directory, named = listing.locate(path)
  steps = listing.steps(directory)
  step = named if step is None else step
  if step is None:
    return directory, steps
  if step not in steps:
    raise ValueError(
      f'--step must be one of {steps} in {directory}, got {step}.'
    )
  return directory, [step]


def listed(directory: epath.Path) -> list[StepSummary]:
  """The steps in a directory, in ascending order."""
  best = listing.best_step(directory)
  found = []
  for step in listing.steps(directory):
    meta = listing.read_meta(directory / str(step))
    size = integrity.size(directory / str(step))
    metrics = meta.get('metrics') or {}
    found.append(StepSummary(step, size, metrics, step == best, not meta))
  return found


def damage(
  directory: epath.Path, steps: list[int]
) -> Iterator[tuple[int, list[str]]]:
  """The problems of each step, a phrase per file; none if the step is sound.

  Args:
    directory: directory of the steps.
    steps: the steps to check. Every byte is read and every array is opened.
  """
  for step in steps:
    yield step, restore.damage(directory / str(step))


def recorded(
  directory: epath.Path, step: int
) -> tuple[dict[str, Any], dict[str, str]]:
  """The record of a step, as (short entries, texts of several lines)."""
  meta = listing.read_meta(directory / str(step))
  is_text = lambda value: isinstance(value, str) and '\n' in value
  texts = {key: value for key, value in meta.items() if is_text(value)}
  return {k: v for k, v in meta.items() if k not in texts}, texts
