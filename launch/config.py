"""What a run is made of, as gin configures it, and finding a run again."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence

import gin
import jax
import optax

from launch import bindings, sizes, values
from moe.modalities.vocabulary import Vocabulary
from moe.models import functional as functional_lib
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.optim.storage import Storage
from moe.parallel import rules as rules_lib
from moe.parallel.mesh import MeshShape
from moe.train import restore, trainer
from moe.train import upcycle as upcycle_lib
from moe.types import Layout, PyTree


@dataclasses.dataclass(frozen=True)
class Data:
  """What is read.

  Attributes:
    train: task or mixture, read from its 'train' split.
    evaluation: tasks scored on their 'validation' split; the first one ranks
      checkpoints.
    sequence_length: T.
    batch_size: B, over all devices and microbatches.
    vocabulary: file of a SentencePiece model; '' trains one of at most the
      model's vocab_size on the train split at first use.
    cache_dir: where token stores lie; '' is $WUDAO_CACHE or ~/.cache/wudao.
  """

  train: str
  evaluation: Sequence[str]
  sequence_length: int
  batch_size: int
  vocabulary: str = ''
  cache_dir: str = ''

  def __post_init__(self):
    for name in ('sequence_length', 'batch_size'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name.upper()}={getattr(self, name)} must be at least 1.'
        )


@dataclasses.dataclass(frozen=True)
class Initial:
  """Parameters to start from, where they are not random.

  Attributes:
    checkpoint: work directory or step directory of another run; '' for none.
    assignment: (regular expression of our parameter's path, path there, or None
      to keep our own) pairs; the first that matches in full counts.
    upcycle: where the checkpoint is of a dense model and this one is sparse,
      how its experts are made.
  """

  checkpoint: str = ''
  assignment: Sequence[tuple[str, str | None]] = ()
  upcycle: upcycle_lib.Method | None = None

  def __post_init__(self):
    if self.upcycle and (self.assignment or not self.checkpoint):
      raise ValueError(
        'UPCYCLE needs INITIAL_CHECKPOINT, a dense run, and no'
        ' INITIAL_ASSIGNMENT: set the one and drop the other.'
      )


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a gin file says.

  Attributes:
    model: the model.
    mesh: devices per mesh axis.
    rules: name of a table in moe/parallel/rules.py.
    objective: makes the objective from the model's functions.
    optimizer: makes the optimizer from the schedule.
    schedule: learning rate by step.
    clip_norm: largest norm of the gradient; 0 for no clipping.
    frozen: regular expressions of parameters that are not trained.
    storage: number formats of parameters and gradients.
    data: what is read.
    settings: of the training loop.
    initial: parameters to start from.
    prompts: texts to write after at the end, for the report.
  """

  model: Decoder
  mesh: MeshShape
  objective: Callable
  optimizer: Callable[..., optax.GradientTransformation]
  schedule: Callable
  data: Data
  settings: trainer.Settings
  rules: str = 'standard'
  clip_norm: float = 1.0
  frozen: Sequence[str] = ()
  storage: Storage = Storage()
  initial: Initial = Initial()
  prompts: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run read back from its work directory.

  Attributes:
    functional: the model on one device.
    params: its parameters.
    state: what is carried beside them.
    vocabulary: of the run.
    step: of the checkpoint.
    workdir: of the run.
    run: its configuration.
  """

  functional: Functional
  params: PyTree
  state: PyTree
  vocabulary: Vocabulary
  step: int
  workdir: str
  run: Run


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
    values.plain(where[name]) if name in where else 'unset'
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


def router_of(run: Run):
  """The router of a run's sparse layers; None where it has none."""
  stack = run.model.stack(parent=None)
  block = stack.block(parent=None)
  if not stack.moe_every or block.dense_twin:
    return None
  return block.moe(parent=None).make_router()


def place(run: Run, devices: Sequence | None = None):
  """(functional, rule table, mesh) of a run on devices."""
  from moe.parallel.mesh import make_mesh

  table = rules_lib.table(run.rules)
  mesh = make_mesh(run.mesh, devices or jax.devices())
  layout = rules_lib.layout(table, mesh)
  functional = functional_lib.placed(
    run.model, rules_lib.activation_rules(table), layout
  )
  return functional, table, mesh
