"""Makes the run that bindings describe."""

import re
from collections.abc import Callable

from launch.configs import bindings, gin_text, reach, sizes
from launch.configs.configuration import (
  FOLDING_MODEL,
  IMAGE_TOKENIZER,
  LANGUAGE_MODEL,
  Configuration,
)
from launch.configs.tree import Tree
from moe.bounds import OutOfRange
from moe.models.anatomy import anatomy
from moe.models.block import Block
from moe.runs.folding_run import FoldingRun
from moe.runs.run import Run
from moe.runs.tokenizer_run import TokenizerRun

# The class of a run -> what it trains.
_ROOTS = {
  Run: LANGUAGE_MODEL,
  TokenizerRun: IMAGE_TOKENIZER,
  FoldingRun: FOLDING_MODEL,
}


def root_of(bound: bindings.Bound, files: str) -> type:
  """The class of the run that the bindings describe.

  Args:
    bound: the bindings.
    files: names of the gin files, for the error message.

  Raises:
    ValueError: if the bindings describe no run, or several.
  """
  roots = [r for r in _ROOTS if any(b.target is r for b in bound.bindings)]
  if not roots:
    raise ValueError(
      f"{files} must include 'runs/train.gin', which wires a run: give a file"
      ' of gin_configs/runs, or add --gin_file=runs/train.gin.'
    )
  if len(roots) > 1:
    raise ValueError(
      f"{files} must include one of 'runs/train.gin',"
      " 'runs/image_tokenizer.gin' and 'runs/folding.gin', got"
      f' {len(roots)} of them: keep one.'
    )
  return roots[0]


def assemble(bound: bindings.Bound, root: type = Run) -> Configuration:
  """Makes the run that the bindings describe, and its written configuration.

  Args:
    bound: the bindings.
    root: the class of the run.

  Raises:
    ValueError: if `reach.check` or `sizes.check` finds an error, or if a class
      from which the run is built refuses its arguments.
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
    _ROOTS[root],
  )


def _missing_argument(message: str) -> str:
  found = re.search(r'([\w.]+)\(\) missing .* arguments?: (.*)', message)
  if not found:
    return message
  owner = found.group(1).removesuffix('.__init__')
  return f'{owner} needs {found.group(2)}: bind it in a gin file.'


def _unfollowed(run: Run) -> list[tuple[Callable, str]]:
  """(`Block`, argument) for each kind of layer that the model does not have."""
  layers = anatomy(run.model).layers
  is_sparse = [bool(layer.experts or layer.twin_of) for layer in layers]
  made = {'feed_forward': not all(is_sparse), 'moe': any(is_sparse)}
  return [(Block, argument) for argument in made if not made[argument]]
