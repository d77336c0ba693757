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

  data = lambda name, default: value(
    f'run.Data.{name}', value(f'config.Data.{name}', default)
  )
  seed = value('trainer.Settings.seed', 0)
  return seed, (data('train', ''), *data('evaluation', ()))
