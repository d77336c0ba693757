"""Lists the checkpoints in a directory: their steps, metadata and ranks.

There is no index of the steps. A step is committed if its folder exists; on an
object store the folder must also contain the marker. This module needs no
`Checkpointer`, so other programs can read the checkpoints of a run that still
trains.
"""

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from moe import failpoints, json_text
from moe.checkpoint import integrity

# Name of the file that commits a step on an object store; Orbax defines it.
MARKER = 'commit_success.txt'
# File of a work directory. Its first line is the URL of the bucket that holds
# the checkpoints, its second line identifies the run.
BUCKET = 'bucket.txt'
# File with the metrics of a step that was scored after its commit.
LATE_METRICS = 'late_metrics.json'
# Clients of NFS remember the content of a directory for up to 60 seconds.
_VISIBLE_SECONDS = 70.0


def steps(directory: epath.PathLike) -> list[int]:
  """Numbers of the committed steps in ascending order."""
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


def shared_steps(directory: epath.PathLike) -> list[int]:
  """The committed steps as process 0 sees them; all processes must call this.

  A network file system may show a new step to some hosts later than to others.
  Then the processes would resume from different steps. So this also waits, for
  at most 70 seconds, until the newest step is visible to this process.
  """
  found = steps(directory)
  if jax.process_count() == 1:
    return found
  shared = multihost_utils.broadcast_one_to_all
  size = int(shared(np.array(len(found))))
  if not size:
    return []
  # Only the numbers of process 0 matter, but all arrays must have one shape.
  found = shared(np.array((found + [0] * size)[:size], np.int32)).tolist()
  end = time.monotonic() + _VISIBLE_SECONDS
  while not (epath.Path(directory) / str(found[-1])).exists():
    if time.monotonic() > end:
      break
    time.sleep(0.5)
  return found


def bucket_of(workdir: str | os.PathLike) -> str | None:
  """The URL of the bucket of a work directory; None if it has no bucket."""
  try:
    with open(os.path.join(workdir, BUCKET), encoding='utf-8') as f:
      return f.readline().strip()
  except (FileNotFoundError, NotADirectoryError):
    return None


def steps_dir(workdir: str | os.PathLike) -> str:
  """The directory of a run's checkpoints, which may be in a bucket."""
  place = bucket_of(workdir) or os.path.abspath(workdir)
  return os.path.join(place, 'checkpoints')


def locate(path: epath.PathLike) -> tuple[epath.Path, int | None]:
  """Finds the checkpoints to which a path of the user refers.

  Args:
    path: directory of a run, its folder `checkpoints`, or one of its steps.

  Returns:
    (directory of the steps, step); the step is None if `path` is no step.

  Raises:
    ValueError: if the directory has no step.
  """
  if '://' not in os.fspath(path):
    path = os.path.abspath(path)  # Orbax takes no relative paths.
    found = bucket_of(path)
    path = path if found is None else found
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
  """Reads the metadata of a step; it is empty if its file is damaged."""
  step_directory = epath.Path(step_directory)
  meta = _object(step_directory / 'meta/metadata')
  late = _object(step_directory / LATE_METRICS)
  if not meta or not late:
    return meta
  ranked_on = late.pop('ranked_on', meta.get('ranked_on'))
  metrics = {**(meta.get('metrics') or {}), **late}
  return {**meta, 'metrics': metrics, 'ranked_on': ranked_on}


def _object(path: epath.Path) -> dict[str, Any]:
  """The JSON object in a file, empty if it is damaged or missing."""
  try:
    found = json_text.parse(path.read_text())
  except (OSError, ValueError):
    return {}
  is_sound = isinstance(found, dict)
  is_sound = is_sound and isinstance(found.get('metrics') or {}, dict)
  return found if is_sound else {}


def add_metrics(
  step_directory: epath.PathLike,
  metrics: dict[str, float],
  ranked_on: str | None = None,
) -> None:
  """Adds metrics to a committed step that was evaluated after its save.

  The metrics go into a separate file without an entry in `integrity.json`, so
  the check of the step still passes.

  Args:
    step_directory: directory of the step.
    metrics: numbers of the step by name.
    ranked_on: identifies the data on which the metrics were measured.
  """
  if jax.process_index() == 0:
    # The step may be on an object store, and `atomic_files` needs a local disk.
    path = epath.Path(step_directory) / LATE_METRICS
    temporary = late_temporary(path.parent)
    entries = (
      metrics if ranked_on is None else {**metrics, 'ranked_on': ranked_on}
    )
    temporary.write_text(json.dumps(entries))
    failpoints.reach('late.written')
    temporary.replace(path)


def late_temporary(step_directory: epath.Path) -> epath.Path:
  """The temporary file that is renamed to `LATE_METRICS` once it is written."""
  return (step_directory / LATE_METRICS).with_suffix('.tmp')


def ranking(directory: epath.PathLike, metric: str | None = None) -> list[int]:
  """Ranks steps by a metric, the best first; the newer of equal steps first.

  The smallest value is the best, unless `is_higher_better` is true in the
  metadata of the newest step.

  Values that were measured on different data cannot be compared. So of the
  scored steps that record their data, only those with the data of the newest
  one are ranked. Earlier versions did not record the data, so their steps are
  ranked as well.

  Args:
    directory: directory of the steps.
    metric: name of the metric; None takes the one that the metadata of the
      newest step names. A step without this metric is left out.
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
  """The best step by `ranking`; None if no step has been scored."""
  return next(iter(ranking(directory)), None)


def shared_best_step(directory: epath.PathLike) -> int | None:
  """The best step as process 0 sees it; all processes must call this."""
  return _of_process_0(lambda: best_step(directory))


def shared_newest_step(directory: epath.PathLike) -> int | None:
  """The newest step as process 0 sees it; all processes must call this."""
  return _of_process_0(lambda: max(steps(directory), default=None))


def _of_process_0(look: Callable[[], int | None]) -> int | None:
  if jax.process_count() == 1:
    return look()
  found = look() if jax.process_index() == 0 else None
  number = np.array(-1 if found is None else found)
  number = int(multihost_utils.broadcast_one_to_all(number))
  return None if number < 0 else number


def superseded(
  directory: epath.PathLike, keep_last: int, keep_best: int, metric: str | None
) -> list[int]:
  """Steps that can be removed, in ascending order.

  These are the steps that neither `keep_last` nor `keep_best` keeps.

  Args:
    directory: directory of the steps.
    keep_last: how many of the newest steps stay.
    keep_best: how many of the best steps stay; they may be among the newest.
    metric: see `ranking`.
  """
  known = steps(directory)
  kept = set(known[-keep_last:])
  if keep_best:
    kept.update(ranking(directory, metric)[:keep_best])
  return [step for step in known if step not in kept]
