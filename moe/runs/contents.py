"""Summaries of the checkpoints of a run: steps, sizes, damage, metadata."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from moe.checkpoint import foreign, integrity, listing, restore


class StepSummary(NamedTuple):
  """One step of a run.

  Attributes:
    step: number of the step.
    bytes: size of its files.
    metrics: name -> number; the steps are ranked by one of these metrics.
    is_best: whether the step is the best one by this metric.
    is_damaged: whether the metadata of the step cannot be read.
  """

  step: int
  bytes: int
  metrics: dict[str, float]
  is_best: bool
  is_damaged: bool


def chosen(
  path: epath.PathLike, step: int | None
) -> tuple[epath.Path, list[int]]:
  """Returns (directory of all steps, numbers of the chosen steps).

  Args:
    path: directory of a run, its folder `checkpoints`, or one of its steps.
    step: number of the chosen step. None chooses the step that `path` names. If
      `path` names no step, None chooses all steps, in ascending order.

  Raises:
    ValueError: if the chosen step does not exist.
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
  """Summaries of all steps in a directory, in ascending order."""
  best = listing.best_step(directory)
  found = []
  for step in listing.steps(directory):
    meta = listing.read_meta(directory / str(step))
    size = integrity.size(directory / str(step))
    metrics = meta.get('metrics') or {}
    found.append(StepSummary(step, size, metrics, step == best, not meta))
  return found


def as_table(steps: Sequence[StepSummary]) -> str:
  """A heading, then a line for each step with its size and metrics."""
  lines = [f'{"step":>10} {"size":>10}  metrics']
  for one in steps:
    remarks = [f'{name}={value:.4g}' for name, value in one.metrics.items()]
    remarks += ['(best)'] if one.is_best else []
    if one.is_damaged:
      remarks = ['(damaged)']
    size = f'{one.bytes / 2**20:>6.1f} MiB'
    lines.append(f'{one.step:>10} {size}  {" ".join(remarks)}'.rstrip())
  return '\n'.join(lines)


def damage(
  directory: epath.Path, steps: list[int], is_foreign: bool = False
) -> Iterator[tuple[int, list[str]]]:
  """Checks steps: yields the number of each step and a list of its problems.

  The list has a phrase for each problem and is empty for a sound step, of which
  every byte is read and every array opened.

  Args:
    directory: directory of the steps.
    steps: numbers of the steps to check.
    is_foreign: True for steps from a stranger. The check then looks first for
      files that could harm this machine, see `moe.checkpoint.foreign`.
  """
  for step in steps:
    path = directory / str(step)
    found = foreign.problems(path) if is_foreign else []
    yield step, found or restore.damage(path)


def recorded(directory: epath.Path, step: int) -> str:
  """The metadata of a step: JSON, then each text of several lines."""
  meta = listing.read_meta(directory / str(step))
  is_text = lambda value: isinstance(value, str) and '\n' in value
  texts = {key: value for key, value in meta.items() if is_text(value)}
  entries = {k: v for k, v in meta.items() if k not in texts}
  # JSON would write the line breaks of the texts as escapes.
  parts = [json.dumps(entries, indent=2, ensure_ascii=False)]
  parts += [f'{key}:\n{text.rstrip()}' for key, text in texts.items()]
  return '\n\n'.join(parts)
