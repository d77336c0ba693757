"""Reads the config.gin of a run without importing the modules that it names."""

import pathlib
from collections.abc import Callable

from launch.configs import bindings, gin_values


def seed_and_tasks(path: pathlib.Path) -> tuple[int, tuple[str, ...]]:
  """(seed, tasks) of a run: first the training task, then evaluation tasks.

  Args:
    path: a config.gin.

  Raises:
    ValueError: if the file cannot be read.
  """
  value = _values(path)
  return value('moe.train.trainer.Settings.seed', 0), (
    value('moe.runs.run.Data.train', ''),
    *value('moe.runs.run.Data.evaluation', ()),
  )


def task_modules_and_cache(directory: str) -> tuple[tuple[str, ...], str]:
  """(task modules, cache directory) of a run; ((), '') without a config.gin.

  Args:
    directory: work directory of a run, its folder `checkpoints`, or one step in
      this folder.

  Raises:
    ValueError: if the file cannot be read.
  """
  place = pathlib.Path(directory).absolute()
  for folder in (place, *place.parents[:2]):
    if (folder / 'config.gin').is_file():
      value = _values(folder / 'config.gin')
      modules = value('moe.runs.run.Data.task_modules', ())
      return tuple(modules), value('moe.runs.run.Data.cache_dir', '')
  return (), ''


def _values(path: pathlib.Path) -> Callable[[str, object], object]:
  """A function (full name of an argument, default) -> value in a config.gin."""
  written = bindings.read_written(path.read_text(encoding='utf-8'), str(path))

  def value(name: str, default: object) -> object:
    found = written.get(name, default)
    while isinstance(found, gin_values.Macro):
      found = written.get(found.name, default)
    return found

  return value
