"""What a run has written into its config.gin, read without what it names."""

import pathlib

from launch.configs import bindings, gin_values


def seed_and_tasks(path: pathlib.Path) -> tuple[int, tuple[str, ...]]:
  """The seed of a run, and its tasks: trained on, evaluated on...

  Args:
    path: a config.gin; old ones name `config.Data` instead of `run.Data`.

  Raises:
    ValueError: if the file cannot be read.
  """
  written = bindings.read_written(path.read_text(encoding='utf-8'), str(path))

  def value(name: str, default: object) -> object:
    found = written.get(name, default)
    while isinstance(found, gin_values.Macro):
      found = written.get(found.name, default)
    return found

  return value('moe.train.trainer.Settings.seed', 0), (
    value('moe.runs.run.Data.train', ''),
    *value('moe.runs.run.Data.evaluation', ()),
  )
