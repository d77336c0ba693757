"""The classes that hold the settings of a run."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence

import optax
from jax.sharding import Mesh

from moe import bounds
from moe.checkpoint import upcycle as upcycle_lib
from moe.data.transforms import Transform
from moe.modalities.ids import UNK, IdSpace, of_ranges
from moe.modalities.text import Vocabulary
from moe.models.anatomy import anatomy
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.objectives.objective import Objective
from moe.optim import groups as groups_lib
from moe.optim import optimizers
from moe.optim.groups import Factors, Group
from moe.optim.storage import Storage
from moe.parallel.mesh import MeshShape
from moe.routing.plan import Router
from moe.train import trainer
from moe.types import PyTree

# File name of the frozen image tokenizer in the work directory of a run.
IMAGE_TOKENIZER = 'image_tokenizer.bin'


@dataclasses.dataclass(frozen=True)
class Data:
  """The data of a run.

  Attributes:
    train: task or mixture to train on; its 'train' split is read.
    evaluation: tasks to evaluate on; their 'validation' split is read.
      Checkpoints are ranked by the score of the first task.
    sequence_length: T.
    batch_size: B, over all devices and microbatches.
    vocabulary: file of a SentencePiece model. '' trains a vocabulary on the
      train split before its first use, with at most vocab_size pieces.
    cache_dir: folder of token stores; '' is $WUDAO_CACHE or ~/.cache/wudao.
    task_modules: further Python modules or files that declare tasks.
    ranges: (name, size) of each id range besides text, such as ('image', 8192);
      see `moe.modalities.ids.IdSpace`.
    transforms: (task, transform) pairs. A transform changes a document each
      time it is read, see `moe.data.transforms`.
    image_tokenizer: file of the frozen tokenizer that made the image codes; ''
      if there are no image codes, or if no tokenizer made them.
    shares: share of the tokens of each modality, in the order of
      `moe.types.MODALITIES`; () for text alone. Only plans use it: the corpus
      of a run decides the real shares.
    max_bad_fraction: share of the training records of a store that may be
      unreadable. Their rows stay empty, and quarantine.jsonl lists them.
  """

  train: str
  evaluation: Sequence[str]
  sequence_length: int
  batch_size: int
  vocabulary: str = ''
  cache_dir: str = ''
  task_modules: Sequence[str] = ()
  ranges: Sequence[tuple[str, int]] = ()
  transforms: Sequence[tuple[str, Transform]] = ()
  image_tokenizer: str = ''
  shares: Sequence[float] = ()
  max_bad_fraction: float = 1e-4

  @property
  def shape(self) -> tuple[int, int]:
    """(B, T) of a batch."""
    return self.batch_size, self.sequence_length

  def __post_init__(self):
    for name in ('sequence_length', 'batch_size'):
      meaning = 'a dim of every batch'
      bounds.at_least(1, name.upper(), getattr(self, name), meaning)
    for share in self.shares:
      meaning = 'share of the tokens of a modality'
      bounds.within('shares', share, meaning, least=0, most=1)
    if self.shares and abs(sum(self.shares) - 1) > 1e-6:
      raise ValueError(
        f'shares must add up to 1, got {tuple(self.shares)}: change one.'
      )
    meaning = 'share of the training records that may be unreadable'
    value = self.max_bad_fraction
    bounds.within('max_bad_fraction', value, meaning, least=0, most=1)
    self.ids(UNK + 1)  # This raises an error if a range is wrong.

  def ids(self, text: int, image_tokenizer: str = '') -> IdSpace:
    """Makes the id space of the data.

    Args:
      text: number of pieces in the vocabulary.
      image_tokenizer: SHA-256 of the tokenizer of the image codes, if any.
    """
    tokenizers = {'image': image_tokenizer} if image_tokenizer else {}
    return of_ranges(text, dict(self.ranges), tokenizers)


@dataclasses.dataclass(frozen=True)
class Initial:
  """Initial parameters that come from another run.

  Attributes:
    checkpoint: work directory or step directory of the other run; '' for none.
    assignment: pairs (regular expression for paths in this run, path in the
      other run). The first pair that matches a whole path counts. If the path
      in the other run is None, the parameter keeps its random value.
    upcycle: method that makes experts from a dense checkpoint; None if the
      checkpoint has the same kind of model.
  """

  checkpoint: str = ''
  assignment: Sequence[tuple[str, str | None]] = ()
  upcycle: upcycle_lib.Method | None = None

  def __post_init__(self):
    for pattern, _ in self.assignment:
      bounds.regular_expression('INITIAL_ASSIGNMENT', pattern)
    if self.upcycle and (self.assignment or not self.checkpoint):
      raise ValueError(
        'UPCYCLE needs INITIAL_CHECKPOINT, the checkpoint of a dense run, and'
        ' no INITIAL_ASSIGNMENT: set the first and drop the second.'
      )


@dataclasses.dataclass(frozen=True)
class Run:
  """The configuration of a run.

  Attributes:
    model: the model.
    mesh: devices per mesh axis.
    rules: name of a sharding table in moe/parallel/rules.py.
    objective: makes the objective from the model's functions and (B, T).
    optimizer: makes the optimizer from the schedule.
    schedule: learning rate by step.
    clip_norm: norm to which larger gradients are scaled; 0 for no clipping.
    frozen: regular expressions of parameter paths that are not trained.
    groups: (regular expression, factor of the learning rate, factor of the
      weight decay) of each parameter group. The expression must match a whole
      parameter path. Routers, norm scales and biases never have weight decay.
    storage: number formats of parameters and gradients, and whether the
      optimizer's state is in host memory.
    data: the data.
    settings: settings of the training loop.
    initial: initial parameters from another run.
    prompts: prompts of the samples in the report.
  """

  model: Decoder
  mesh: MeshShape
  objective: Callable[..., Objective]
  optimizer: Callable[..., optax.GradientTransformation]
  schedule: optax.Schedule
  data: Data
  settings: trainer.Settings
  rules: str = 'standard'
  clip_norm: float = 1.0
  frozen: Sequence[str] = ()
  groups: Sequence[Group] = ()
  storage: Storage = Storage()
  initial: Initial = Initial()
  prompts: Sequence[str] = ()

  def __post_init__(self):
    clips = '0 clips nothing'
    bounds.within('CLIP_NORM', self.clip_norm, clips, least=0)
    # The vocabulary has at least its special ids. If there are other ranges,
    # the id space rounds the number of text ids up to a multiple of 128.
    least = self.data.ids(UNK + 1).size
    ids = 'ids of text, with the other ranges'
    bounds.at_least(least, 'VOCAB_SIZE', self.model.vocab_size, ids)
    for pattern in self.frozen:
      bounds.regular_expression('FROZEN', pattern)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A trained run, read from its work directory.

  Attributes:
    functional: the model on the mesh.
    mesh: mesh of the devices that hold the parameters. Callers must set it, for
      example by `jax.set_mesh`, around all calls of the model.
    params: parameters of the model.
    state: model state, such as router biases.
    vocabulary: vocabulary of the run.
    step: step of the checkpoint.
    workdir: directory of the run.
    run: configuration of the run.
    image_tokenizer: SHA-256 of the tokenizer of the image codes; '' if there is
      none.
  """

  functional: Functional
  mesh: Mesh
  params: PyTree
  state: PyTree
  vocabulary: Vocabulary
  step: int
  workdir: str
  run: Run
  image_tokenizer: str = ''

  @property
  def row_parts(self) -> int:
    """The number of parts into which the mesh divides the rows of a batch."""
    layout = self.functional.layout
    return layout.size(layout.batch_axes)

  @property
  def ids(self) -> IdSpace:
    """The id space of the run."""
    return self.run.data.ids(self.vocabulary.size, self.image_tokenizer)


def optimizer_of(run: Run) -> optimizers.Optimizer:
  """The optimizer of a run.

  Raises:
    ValueError: if a group is malformed, or if there are groups or a
      parametrisation that the optimizer does not support.
  """
  options, scales = {}, run.model.parametrisation
  if run.groups or scales:
    if 'factors' not in inspect.signature(run.optimizer).parameters:
      raise ValueError(
        'GROUPS and PARAMETRISATION need an OPTIMIZER with `factors`, such as'
        f' @optimizers.adamw, got {run.optimizer}: change one of them.'
      )
    of_groups = groups_lib.factors_of(run.groups)

    def factors(name: str, is_orthogonal: bool) -> Factors:
      found = of_groups(name, is_orthogonal)
      if not scales:
        return found
      rate = scales.rate(name, is_orthogonal, run.model.d_model)
      return found.times(Factors(rate_alone=rate))

    options['factors'] = factors
  return optimizers.build(
    run.optimizer(run.schedule, **options),
    run.clip_norm,
    run.frozen,
    run.storage,
    run.groups,
  )


def check_rates(run: Run) -> None:
  """Checks that the rules of learning rates fit the model.

  Only training has learning rates, so other uses of a model need no check.

  Raises:
    ValueError: if the parametrisation assumes other embeddings.
  """
  scale = run.model.embedding_scale
  if run.model.parametrisation and scale is not None:
    raise ValueError(
      f'EMBEDDING_SCALE must be None with a PARAMETRISATION, got {scale}: its'
      ' rates assume embeddings that are multiplied by the square root of'
      ' D_MODEL.'
    )


def reserved_of(run: Run) -> tuple[int, ...]:
  """Numbers of experts that a layer reserves for each modality; () for none."""
  return tuple(getattr(router_of(run), 'reserved', ()))


def router_of(run: Run) -> Router | None:
  """The router of a run's sparse layers; None for a dense model."""
  experts = anatomy(run.model).experts
  return experts and experts.router
