"""The run that gin files describe, and the run that a work directory holds."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from launch.configs import bindings, gin_values
from launch.later import Later

assembly = Later('launch.configs.assembly')
trained = Later('moe.runs.trained')

# What a run may train.
LANGUAGE_MODEL = 'a language model'
IMAGE_TOKENIZER = 'an image tokenizer'
FOLDING_MODEL = 'a folding model'


class Configuration(NamedTuple):
  """A run, and the configuration that describes it.

  Attributes:
    run: a `Run`, `TokenizerRun` or `FoldingRun` of `moe.runs`, made of plain
      values, objects and partials of functions.
    text: all bindings, as one gin file that includes no other file.
    operative_text: the bindings and default values that the run uses.
    trains: what the run trains, such as `LANGUAGE_MODEL`.
  """

  run: Any
  text: str
  operative_text: str
  trains: str


def read(files: Sequence[str], overrides: Sequence[str]) -> Configuration:
  """Reads gin files, then bindings of the command line; later ones override.

  Raises:
    ValueError: if no file is given, or if `bindings.read`, `assembly.root_of`
      or `assembly.assemble` finds an error.
  """
  if not files:
    raise ValueError(
      '--gin_file=FILE is required, such as gin_configs/runs/quickstart.gin.'
    )
  bound = bindings.read(list(files), list(overrides))
  return assembly.assemble(bound, assembly.root_of(bound, ', '.join(files)))


def load(files: Sequence[str], overrides: Sequence[str]) -> Any:
  """Reads the run of a language model, as a `moe.runs.run.Run`.

  Raises:
    ValueError: if the run trains something else, or if `read` finds an error.
  """
  found = read(files, overrides)
  if found.trains != LANGUAGE_MODEL:
    raise ValueError(
      f'{", ".join(files)} must describe {LANGUAGE_MODEL}, got {found.trains}:'
      ' give another file.'
    )
  return found.run


def load_run(directory: str) -> Any:
  """Reads a trained model back, as a `moe.runs.run.TrainedRun`.

  Args:
    directory: work directory of a run, its folder `checkpoints`, or one step in
      this folder. For a run, the step with the best score is read, or the
      newest sound step if no step has a score.

  Raises:
    ValueError: if something is missing, damaged, or does not fit together.
  """
  place = trained.find(directory)
  return trained.read_back(load([place.config], []), place)


def trains(directory: str) -> str:
  """What the run in a work directory trains, such as `LANGUAGE_MODEL`."""
  return read([os.path.join(directory, 'config.gin')], []).trains


def load_other_run(directory: str, trains: str) -> Any:
  """Reads a run that trains no language model from its work directory.

  Args:
    directory: work directory of the run.
    trains: what the run must train, such as `IMAGE_TOKENIZER`.

  Raises:
    ValueError: if `read` finds an error in the configuration, or if the run
      trains something else.
  """
  path = os.path.join(directory, 'config.gin')
  found = read([path], [])
  if found.trains != trains:
    raise ValueError(
      f'{path} must describe the run of {trains}, got that of {found.trains}:'
      ' name another directory.'
    )
  return found.run


def differences(text: str, path: str) -> list[str]:
  """Lists the differences to a written configuration, as 'NAME old -> new'.

  Args:
    text: the present configuration.
    path: a file with an earlier configuration. If the file is missing, the list
      is empty.

  Raises:
    ValueError: if the file cannot be read.
  """
  if not os.path.isfile(path):
    return []
  with open(path, encoding='utf-8') as f:
    old = bindings.read_written(f.read(), path)
  new = bindings.read_written(text, 'the configuration')
  return [
    f'{_shortened(name, 3)} {_shown(old, name)} -> {_shown(new, name)}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name, ...) != new.get(name, ...)
  ]


def _shortened(name: str, num_parts: int) -> str:
  """The last parts of a path: 'moe.routing.gates.TopK' becomes 'gates.TopK'."""
  return '.'.join(name.split('.')[-num_parts:])


def _shown(values: dict[str, object], name: str) -> str:
  if name not in values:
    return 'unset'
  shorten = lambda reference: dataclasses.replace(
    reference, name=_shortened(reference.name, 2)
  )
  return repr(gin_values.map_references(shorten, values[name]))
