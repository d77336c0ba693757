"""Which checkpoints a directory holds: their steps, records and ranks.

The directory itself is the only truth: a step is committed if its folder is
there and, on an object store, if the marker is in it. Nothing here needs a
`Checkpointer`, so that other programs can look into a run that still trains.
"""

import json
import math
import os
from typing import Any

import jax
from etils import epath

from moe import failpoints
from moe.checkpoint import integrity

# Orbax's name of the file that commits a step on an object store.
MARKER = 'commit_success.txt'
# Metrics of a step that was scored after it had been committed.
LATE_METRICS = 'late_metrics.json'


def steps(directory: epath.PathLike) -> list[int]:
  """Committed steps in ascending order."""
  directory = epath.Path(directory)
  if not directory.is_dir():
    return []
  is_remote = integrity.on_object_store(directory)
  found = []
  for path in directory.iterdir():
    if not (path.name.isdecimal() and str(int(path.name)) == path.name):
      continue
    if path.is_dir() and not (is_remote and not (path / MARKER).exists()):
      found.append(int(path.name))
  return sorted(found)


def locate(path: epath.PathLike) -> tuple[epath.Path, int | None]:
  """Finds what a user calls a checkpoint.

  Args:
    path: the directory of a run, its `checkpoints`, or one step in there.

  Returns:
    (directory of the steps, step); the step is None unless `path` is one.

  Raises:
    ValueError: if there is no step.
  """
  if '://' not in os.fspath(path):
    path = os.path.abspath(path)  # Orbax takes no relative paths.
  path = epath.Path(path)
  if path.name.isdecimal() and (path / 'meta').is_dir():
    return path.parent, int(path.name)
  for directory in (path / 'checkpoints', path):
    if steps(directory):
      return directory, None
  raise ValueError(
    f'{path} must be the directory of a run or of its checkpoints, got one'
    ' without any checkpoint: look there for a folder `checkpoints`, or train'
    ' first.'
  )


def read_meta(step_directory: epath.PathLike) -> dict[str, Any]:
  """What was recorded with a step; empty if that file is damaged."""
  step_directory = epath.Path(step_directory)
  try:
    meta = dict(json.loads((step_directory / 'meta/metadata').read_text()))
  except (OSError, ValueError):
    return {}
  try:
    late = json.loads((step_directory / LATE_METRICS).read_text())
  except (OSError, ValueError):
    return meta
  ranked_on = late.pop('ranked_on', meta.get('ranked_on'))
  metrics = {**(meta.get('metrics') or {}), **late}
  return {**meta, 'metrics': metrics, 'ranked_on': ranked_on}


def add_metrics(
  step_directory: epath.PathLike,
  metrics: dict[str, float],
  ranked_on: str | None = None,
) -> None:
  """Records metrics of a committed step that was evaluated after its save.

  The metrics go to a file that is not sealed, so the step stays sound.

  Args:
    step_directory: of the step.
    metrics: numbers of the step by name.
    ranked_on: identifies the data on which they were measured.
  """
  if jax.process_index() == 0:
    # `atomic_files` needs a local disk; the step may lie on an object store.
    path = epath.Path(step_directory) / LATE_METRICS
    temporary = late_temporary(path.parent)
    entries = (
      metrics if ranked_on is None else {**metrics, 'ranked_on': ranked_on}
    )
    temporary.write_text(json.dumps(entries))
    failpoints.reach('late.written')
    temporary.replace(path)


def late_temporary(step_directory: epath.Path) -> epath.Path:
  """The file that becomes `LATE_METRICS` when it is whole."""
  return (step_directory / LATE_METRICS).with_suffix('.tmp')


def ranking(directory: epath.PathLike, metric: str | None = None) -> list[int]:
  """Steps by a metric, the best first; among equals the newer one first.

  The smallest is the best, unless the newest step says that the largest is.

  Numbers that were measured on different data cannot be compared. So only steps
  that were measured on the same data as the newest one are ranked. Earlier
  versions did not record the data: their steps are ranked as well.

  Args:
    directory: of the steps.
    metric: its name; None takes the metric that the newest step names. A step
      without that metric is left out.
  """
  directory = epath.Path(directory)
  metas = {step: read_meta(directory / str(step)) for step in steps(directory)}
  newest = metas[max(metas)] if metas else {}
  metric = metric or newest.get('best_metric')
  sign = -1 if newest.get('is_higher_better') else 1
  scores = {}
  for step, meta in metas.items():
    score = (meta.get('metrics') or {}).get(metric)
    if isinstance(score, int | float) and math.isfinite(score):
      scores[step] = sign * score
  data = {step: metas[step].get('ranked_on') for step in scores}
  latest = next((data[step] for step in sorted(data)[::-1] if data[step]), None)
  return sorted(
    (step for step in scores if data[step] in (None, latest)),
    key=lambda step: (scores[step], -step),
  )


def best_step(directory: epath.PathLike) -> int | None:
  """The first of `ranking`; None if no step has been scored."""
  return next(iter(ranking(directory)), None)


def superseded(
  directory: epath.PathLike, keep_last: int, keep_best: int, metric: str | None
) -> list[int]:
  """Steps that neither `keep_last` nor `keep_best` keeps, in ascending order.

  Args:
    directory: of the steps.
    keep_last: how many of the newest steps stay.
    keep_best: how many of the best steps stay beside them.
    metric: see `ranking`.
  """
  known = steps(directory)
  kept = set(known[-keep_last:])
  if keep_best:
    kept.update(ranking(directory, metric)[:keep_best])
  return [step for step in known if step not in kept]
