"""Makes a run from gin files, or from the configuration in a work directory."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from launch.configs import bindings, gin_text, gin_values, reach, sizes
from launch.configs.tree import Tree
from moe.bounds import OutOfRange
from moe.models.anatomy import anatomy
from moe.models.block import Block
from moe.runs import trained
from moe.runs.run import Run, TrainedRun
from moe.runs.tokenizer_run import TokenizerRun

# The classes whose objects a configuration can describe.
_ROOTS = (Run, TokenizerRun)


class Configuration(NamedTuple):
  """A run, and the configuration that describes it.

  Attributes:
    run: the run, made of plain values, objects and partials of functions.
    text: all bindings, as one gin file that includes nothing.
    operative_text: the bindings that the run uses, with its defaults.
  """

  run: Run | TokenizerRun
  text: str
  operative_text: str


def read(files: Sequence[str], overrides: Sequence[str]) -> Configuration:
  """Reads gin files, then bindings of the command line; later ones override.

  Raises:
    ValueError: if `bindings.read`, `reach.check` or a class of the run finds an
      error.
  """
  if not files:
    raise ValueError(
      '--gin_file=FILE is required, such as gin_configs/runs/quickstart.gin.'
    )
  bound = bindings.read(list(files), list(overrides))
  roots = [r for r in _ROOTS if any(b.target is r for b in bound.bindings)]
  if not roots:
    raise ValueError(
      f"{', '.join(files)} must include 'runs/train.gin', which wires a run:"
      ' give a file of gin_configs/runs, or add --gin_file=runs/train.gin.'
    )
  if len(roots) > 1:
    raise ValueError(
      f"{', '.join(files)} must include one of 'runs/train.gin' and"
      " 'runs/image_tokenizer.gin', got both: take one away."
    )
  return made(bound, roots[0])


def made(bound: bindings.Bound, root: type = Run) -> Configuration:
  """Makes the configuration from bindings.

  Args:
    bound: bindings of the files and of the command line.
    root: the class of the run.

  Raises:
    ValueError: as `read`.
  """
  in_effect = reach.check(bound.bindings, root)
  tree = Tree(bound.bindings)
  try:
    run = tree.make(root)
    if root is Run:
      sizes.check(run)
  except OutOfRange as error:
    raise ValueError(sizes.placed(error, in_effect)) from error
  except (TypeError, ValueError) as error:
    raise ValueError(_missing_argument(str(error))) from error
  unfollowed = _unfollowed(run) if root is Run else []
  operative = gin_text.operative(tree, root, unfollowed)
  return Configuration(
    run,
    bindings.WRITTEN + gin_text.text(bound.imports, *gin_text.written(tree)),
    gin_text.text(bound.imports, *operative),
  )


def load(files: Sequence[str], overrides: Sequence[str]) -> Run:
  """Reads as `read` does; the run must train a language model.

  Raises:
    ValueError: if it is the run of an image tokenizer, or as `read` does.
  """
  run = read(files, overrides).run
  if not isinstance(run, Run):
    raise ValueError(
      f'{", ".join(files)} must describe a language model, got an image'
      ' tokenizer: give another file, or use `python -m launch.images`.'
    )
  return run


def _missing_argument(message: str) -> str:
  found = re.search(r'([\w.]+)\(\) missing .* arguments?: (.*)', message)
  if not found:
    return message
  owner = found.group(1).removesuffix('.__init__')
  return f'{owner} needs {found.group(2)}: bind it in a gin file.'


def _unfollowed(run: Run) -> list[tuple[Callable, str]]:
  """Arguments of `Block` that this model ignores, as (Block, argument) pairs.

  A model whose blocks are all sparse makes no dense feed-forward layer, and a
  dense model makes no MoE layer.
  """
  layers = anatomy(run.model).layers
  is_sparse = [bool(layer.experts or layer.twin_of) for layer in layers]
  made = {'feed_forward': not all(is_sparse), 'moe': any(is_sparse)}
  return [(Block, argument) for argument in made if not made[argument]]


def differences(text: str, path: str) -> list[str]:
  """Compares a configuration with a written file: a list of 'NAME old -> new'.

  Args:
    text: the present configuration.
    path: a file with an earlier configuration. If it is missing, the list is
      empty.

  Raises:
    ValueError: if it cannot be read.
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


def load_run(directory: str) -> TrainedRun:
  """Reads a trained model back.

  Args:
    directory: work directory of a run, its checkpoints, or one step in there.
      Without a step, the best scored step is read; if none has a score, the
      latest is read.

  Raises:
    ValueError: if something is missing, damaged, or does not fit together.
  """
  place = trained.find(directory)
  return trained.read_back(load([place.config], []), place)


def load_tokenizer_run(directory: str) -> TokenizerRun:
  """Reads the run of an image tokenizer from its work directory.

  Raises:
    ValueError: if the configuration is missing, or describes another kind of
      run.
  """
  path = os.path.join(directory, 'config.gin')
  run = read([path], []).run
  if not isinstance(run, TokenizerRun):
    raise ValueError(
      f'{path} must describe the run of an image tokenizer, got that of a'
      ' language model: name another directory.'
    )
  return run
