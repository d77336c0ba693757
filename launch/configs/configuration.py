"""The run that gin files describe, and the run that a work directory holds."""

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
from moe.runs.folding_run import FoldingRun
from moe.runs.run import Run, TrainedRun
from moe.runs.tokenizer_run import TokenizerRun

# What a configuration may describe.
_ROOTS = {
  Run: 'a language model',
  TokenizerRun: 'an image tokenizer',
  FoldingRun: 'a folding model',
}
AnyRun = Run | TokenizerRun | FoldingRun


class Configuration(NamedTuple):
  """A run, and the configuration that describes it.

  Attributes:
    run: plain values, objects and partials of functions.
    text: all bindings, as one gin file that includes nothing.
    operative_text: the bindings that the run uses, with its defaults.
  """

  run: AnyRun
  text: str
  operative_text: str


def read(files: Sequence[str], overrides: Sequence[str]) -> Configuration:
  """Reads gin files, then bindings of the command line; later ones override.

  Raises:
    ValueError: for anything that `bindings.read`, `reach.check` or a class of
      the run objects to.
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
      f"{', '.join(files)} must include one of 'runs/train.gin',"
      " 'runs/image_tokenizer.gin' and 'runs/folding.gin', got"
      f' {len(roots)} of them: keep one.'
    )
  return made(bound, roots[0])


def made(bound: bindings.Bound, root: type = Run) -> Configuration:
  """The configuration that bindings say.

  Args:
    bound: the bindings.
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
  """The run of `read`, which must be the run of a language model.

  Raises:
    ValueError: if it is the run of something else, or as `read` does.
  """
  run = read(files, overrides).run
  if not isinstance(run, Run):
    raise ValueError(
      f'{", ".join(files)} must describe a language model, got'
      f' {_ROOTS[type(run)]}: give another file.'
    )
  return run


def _missing_argument(message: str) -> str:
  found = re.search(r'([\w.]+)\(\) missing .* arguments?: (.*)', message)
  if not found:
    return message
  owner = found.group(1).removesuffix('.__init__')
  return f'{owner} needs {found.group(2)}: bind it in a gin file.'


def _unfollowed(run: Run) -> list[tuple[Callable, str]]:
  """Arguments of the block for kinds of layers that the model does not have."""
  layers = anatomy(run.model).layers
  is_sparse = [bool(layer.experts or layer.twin_of) for layer in layers]
  made = {'feed_forward': not all(is_sparse), 'moe': any(is_sparse)}
  return [(Block, argument) for argument in made if not made[argument]]


def differences(text: str, path: str) -> list[str]:
  """The bindings that differ from those of a written file: 'NAME old -> new'.

  Args:
    text: the configuration as it is now.
    path: a file with an earlier one; if there is no file, nothing differs.

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
  """The last parts of a full path: 'gates.TopK' of 'moe.routing.gates.TopK'."""
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
    directory: work directory of a run, its checkpoints, or one step in there;
      of a run the best step is taken if one was scored, else the latest.

  Raises:
    ValueError: if something is missing, damaged, or does not fit together.
  """
  place = trained.find(directory)
  return trained.read_back(load([place.config], []), place)


def load_other_run(directory: str, kind: type) -> AnyRun:
  """The run of a work directory, which is no language model's.

  Args:
    directory: work directory of the run.
    kind: the class of the run.

  Raises:
    ValueError: if there is no configuration, or that of another kind of run.
  """
  path = os.path.join(directory, 'config.gin')
  run = read([path], []).run
  if not isinstance(run, kind):
    raise ValueError(
      f'{path} must describe the run of {_ROOTS[kind]}, got that of'
      f' {_ROOTS[type(run)]}: name another directory.'
    )
  return run
