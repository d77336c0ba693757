"""The settings of a run that trains a folding model."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from moe import bounds
from moe.modalities import ids as ids_lib
from moe.modalities import residues
from moe.modalities.ids import IdSpace
from moe.models import functional as functional_lib
from moe.models.folding import Folding
from moe.models.functional import FoldingFunctional
from moe.objectives.folding import Factors
from moe.optim import optimizers
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.parallel.rules import Table
from moe.train import program as program_lib
from moe.train import trainer
from moe.train.program import Program

# Sizes of the id ranges that a folding model has besides text.
RANGES = {'command': 1, 'residue': residues.NUM_CODES}


@dataclasses.dataclass(frozen=True)
class Chains:
  """The chains of a run.

  Attributes:
    names: names of sources: 'chains', or folders of a user, such as
      './my_structures'. The first source with held-out chains ranks
      checkpoints.
    crop: residues of a row in training; longer chains are cut.
    batch_size: B, over all devices and microbatches.
    longest: chains with more residues are left out.
    evaluation_length: residues of a row in evaluation, which leaves out longer
      chains.
    rates: relative rate at which chains are drawn from each source. () draws in
      proportion to the number of chains.
    cache_dir: folder of stores; '' is $WUDAO_CACHE or ~/.cache/wudao.
    hidden: share of the residues in training in whose place the trunk reads a
      mask, which makes it harder to learn chains by heart. AlphaFold 2 masks
      15% of an alignment.
  """

  names: Sequence[str]
  crop: int
  batch_size: int
  longest: int = 1024
  evaluation_length: int = 96
  rates: Sequence[float] = ()
  cache_dir: str = ''
  hidden: float = 0.0

  def __post_init__(self):
    if not self.names:
      raise ValueError(f'CHAINS={self.names} must name a source: add one.')
    at_least = bounds.at_least
    at_least(8, 'CROP', self.crop, 'residues of a row')
    at_least(1, 'BATCH_SIZE', self.batch_size, 'chains of a step')
    at_least(30, 'LONGEST_CHAIN', self.longest, 'the shortest chain has 30')
    name = 'EVALUATION_LENGTH'
    at_least(8, name, self.evaluation_length, 'residues of a row')
    share = 'share of the residues that are hidden in training'
    bounds.within('HIDDEN_RESIDUES', self.hidden, share, least=0, below=1)
    bounds.one_for_each('CHAIN_RATES', self.rates, self.names)


@dataclasses.dataclass(frozen=True)
class FoldingRun:
  """The configuration of a run that trains a folding model.

  Attributes:
    model: the model.
    mesh: devices per mesh axis.
    objective: makes the objective from the model's functions and (B, T).
    optimizer: makes the optimizer from the schedule.
    schedule: learning rate by step.
    data: the chains.
    settings: settings of the training loop.
    rules: name of a table in moe/parallel/rules.py.
    clip_norm: norm to which larger gradients are scaled; 0 for no clipping.
  """

  model: Folding
  mesh: MeshShape
  objective: Callable
  optimizer: Callable[..., optax.GradientTransformation]
  schedule: Callable
  data: Chains
  settings: trainer.Settings
  rules: str = 'standard'
  clip_norm: float = 1.0

  def __post_init__(self):
    bounds.within('CLIP_NORM', self.clip_norm, '0 clips nothing', least=0)
    least = ids_lib.of_ranges(ids_lib.UNK + 1, RANGES).size
    vocab_size = self.model.trunk.vocab_size
    bounds.at_least(least, 'VOCAB_SIZE', vocab_size, 'ids with the residues')
    rules.table(self.rules)
    self.model.check()

  @property
  def ids(self) -> IdSpace:
    """The id space of the trunk."""
    room = ids_lib.text_room(self.model.trunk.vocab_size, RANGES)
    return ids_lib.of_ranges(room, RANGES)

  @property
  def recycles(self) -> int:
    """How often the model reads its own result again in evaluation."""
    return self._of_objective('recycles')

  @property
  def has_side_chains(self) -> bool:
    """Whether ALL_ATOM_FAPE trains the places of side-chain atoms.

    The torsion loss trains angles of side chains too, where atoms are known.
    The run does not say whether they are, so this loss does not count.
    """
    return (self._of_objective('factors') or Factors()).all_atom_fape > 0

  def _of_objective(self, name: str) -> Any:
    return inspect.signature(self.objective).parameters[name].default

  def functional(
    self, devices: Sequence[jax.Device] | None = None
  ) -> tuple[FoldingFunctional, Table, jax.sharding.Mesh]:
    """Returns (functional, rule table, mesh); devices=None takes all."""
    table = rules.table(self.rules)
    mesh = make_mesh(self.mesh, list(devices or jax.devices()))
    made = functional_lib.make_folding_functional(
      self.model, rules.activation_rules(table), rules.layout(table, mesh)
    )
    return made, table, mesh

  def program(self, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds the program from shapes; devices=None takes all devices.

    Raises:
      ValueError: if the trunk has a parametrisation.
    """
    # Folding needs no learning rates. So an older run with a parametrisation
    # can still fold, and only training checks this.
    if self.model.trunk.parametrisation:
      raise ValueError(
        'PARAMETRISATION must be None for a folding model, since its parts'
        ' beside the trunk have no rules: drop it.'
      )
    functional, table, mesh = self.functional(devices)
    return program_lib.make_program(
      self.objective(functional, (self.data.batch_size, self.data.crop)),
      optimizers.build(self.optimizer(self.schedule), self.clip_norm),
      self.schedule,
      table,
      mesh,
      self.settings.seed,
      self.settings.num_microbatches,
      self.settings.spike_deviations,
    )
