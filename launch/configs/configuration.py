"""A run as gin configures it, and a trained run found again."""

import os
import re
from collections.abc import Sequence

import gin

from launch.configs import bindings, gin_values, sizes
from moe.checkpoint import restore
from moe.modalities.vocabulary import Vocabulary
from moe.models import functional as functional_lib
from moe.runs.run import Run, TrainedRun
from moe.types import Layout


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


def differences(path: str) -> list[str]:
  """What is bound otherwise now than in a written file, 'NAME old -> new'.

  Args:
    path: of what `config_text` once gave; where it is missing, nothing differs.

  Raises:
    ValueError: if it cannot be read.
  """
  if not os.path.isfile(path):
    return []
  with open(path, encoding='utf-8') as f:
    old = bindings.read_written(f.read(), path)
  new = bindings.read_written(config_text(), 'the configuration')
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
  steps_dir, step = restore.locate(directory)
  workdir = os.path.dirname(os.fspath(steps_dir).rstrip('/'))
  config = os.path.join(workdir, 'config.gin')
  vocabulary_path = os.path.join(workdir, 'vocabulary.model')
  for path in (config, vocabulary_path):
    if not os.path.isfile(path):
      raise ValueError(f'{path} must lie beside the checkpoints of a run.')
  run = load([config], [])
  vocabulary = Vocabulary(vocabulary_path)
  functional = functional_lib.placed(run.model, (), Layout())
  if step is None:
    step = restore.best_step(steps_dir)
  loaded, meta = restore.load_params(steps_dir, step)
  if meta['vocabulary_sha256'] != vocabulary.sha256:
    raise ValueError(
      f'{vocabulary_path} must be the vocabulary that step {meta["step"]} was'
      f' trained with (SHA-256 {meta["vocabulary_sha256"][:12]}), got'
      f' {vocabulary.sha256[:12]}: put the right file back.'
    )
  return TrainedRun(
    functional,
    loaded['params'],
    loaded.get('state', {}),
    vocabulary,
    meta['step'],
    workdir,
    run,
  )
