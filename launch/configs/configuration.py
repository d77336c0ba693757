"""A run as gin configures it, and a trained run found again."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import gin

from launch.configs import bindings, gin_values, sizes
from moe.runs import trained
from moe.runs.run import Run, TrainedRun


class Configuration(NamedTuple):
  """A run, and its whole configuration as gin files that include nothing.

  Attributes:
    run: the run.
    text: all that is bound.
    operative_text: of this, what is used.
  """

  run: Run
  text: str
  operative_text: str


def read(files: Sequence[str], overrides: Sequence[str]) -> Configuration:
  """Reads gin files as `load` does, and keeps what they say."""
  run = load(files, overrides)
  return Configuration(run, config_text(), operative_text())


def load(files: Sequence[str], overrides: Sequence[str]) -> Run:
  """Reads gin files, then bindings of the command line; later ones override.

  Raises:
    ValueError: for anything that gin, `bindings.check` or `sizes.check` objects
      to.
  """
  if not files:
    raise ValueError(
      '--gin_file=FILE is required, such as gin_configs/runs/quickstart.gin.'
    )
  bound, text = bindings.read(list(files), list(overrides))
  if not any(b.target is Run for b in bound):
    raise ValueError(
      f"{', '.join(files)} must include 'runs/train.gin', which wires a run:"
      ' give a file of gin_configs/runs, or add --gin_file=runs/train.gin.'
    )
  sizes.check_values(bindings.check(bound, Run))
  gin.clear_config()
  try:
    gin.parse_config(text)
    run = gin.get_configurable(Run)()
    sizes.check(run)
  except (TypeError, ValueError) as error:
    # gin appends lines on where a call came from; the first says it all.
    message = str(error).strip().split('\n')[0]
    raise ValueError(_missing_argument(message)) from error
  return run


def _missing_argument(message: str) -> str:
  found = re.search(r'([\w.]+)\(\) missing .* arguments?: (.*)', message)
  if not found:
    return message
  owner = found.group(1).removesuffix('.__init__')
  return f'{owner} needs {found.group(2)}: bind it in a gin file.'


def config_text() -> str:
  """The whole configuration as one gin file that includes nothing."""
  return bindings.WRITTEN + gin.config_str(max_line_length=100)


def differences(text: str, path: str) -> list[str]:
  """What a text binds otherwise than a written file does, 'NAME old -> new'.

  Args:
    text: of a `Configuration`.
    path: file of the text of another one; without it, nothing differs.

  Raises:
    ValueError: if it cannot be read.
  """
  if not os.path.isfile(path):
    return []
  with open(path, encoding='utf-8') as f:
    old = bindings.read_written(f.read(), path)
  new = bindings.read_written(text, 'the configuration')
  shown = lambda name, where: (
    gin_values.plain(where[name]) if name in where else 'unset'
  )
  return [
    f'{name} {shown(name, old)} -> {shown(name, new)}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name, ...) != new.get(name, ...)
  ]


def operative_text() -> str:
  """What was in fact used, of the configuration."""
  return gin.operative_config_str(max_line_length=100)


def load_run(directory: str) -> TrainedRun:
  """Reads a trained model back.

  Args:
    directory: work directory of a run, its checkpoints, or one step in there;
      of a run the best step is taken if one was scored, else the latest.

  Raises:
    ValueError: if something is missing, damaged, or does not fit together.
  """
  place = trained.find(directory)
  return trained.read_back(load([place.config], []), place)
