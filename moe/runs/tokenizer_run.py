"""The settings of a run that trains an image tokenizer."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import optax

from moe import bounds
from moe.modalities.image import Autoencoder
from moe.models.functional import PictureFunctional
from moe.optim import optimizers
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train import program as program_lib
from moe.train import trainer
from moe.train.program import Program


@dataclasses.dataclass(frozen=True)
class Pictures:
  """The pictures of a run.

  Attributes:
    names: names of sources: known ones, such as 'fashion_mnist', or folders of
      a user, such as './my_pictures'. The first source with held-out pictures
      ranks checkpoints.
    pixels: height and width of a picture.
    batch_size: B, over all devices and microbatches.
    rates: relative rate at which pictures are drawn from each source. () draws
      in proportion to the number of pictures.
    cache_dir: folder of stores; '' is $WUDAO_CACHE or ~/.cache/wudao.
  """

  names: Sequence[str]
  pixels: int
  batch_size: int
  rates: Sequence[float] = ()
  cache_dir: str = ''

  def __post_init__(self):
    if not self.names:
      raise ValueError(f'PICTURES={self.names} must name a source: add one.')
    side = 'height and width of a picture'
    bounds.at_least(1, 'PIXELS', self.pixels, side)
    bounds.at_least(1, 'BATCH_SIZE', self.batch_size, 'pictures of a step')
    bounds.one_for_each('PICTURE_RATES', self.rates, self.names)


@dataclasses.dataclass(frozen=True)
class TokenizerRun:
  """The configuration of a run that trains an image tokenizer.

  Attributes:
    model: the autoencoder.
    mesh: devices per mesh axis.
    objective: makes the objective from the model's functions and (B, Y, X).
    optimizer: makes the optimizer from the schedule.
    schedule: learning rate by step.
    data: the pictures.
    settings: settings of the training loop.
    rules: name of a table in moe/parallel/rules.py.
    clip_norm: norm to which larger gradients are scaled; 0 for no clipping.
  """

  model: Autoencoder
  mesh: MeshShape
  objective: Callable
  optimizer: Callable[..., optax.GradientTransformation]
  schedule: Callable
  data: Pictures
  settings: trainer.Settings
  rules: str = 'standard'
  clip_norm: float = 1.0

  def __post_init__(self):
    bounds.within('CLIP_NORM', self.clip_norm, '0 clips nothing', least=0)
    self.model.grid(self.data.pixels, self.data.pixels)
    rules.table(self.rules)

  def program(self, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds the program from shapes; devices=None takes all devices."""
    side = self.data.pixels
    return program_lib.make_program(
      self.objective(
        PictureFunctional(self.model), (self.data.batch_size, side, side)
      ),
      optimizers.build(self.optimizer(self.schedule), self.clip_norm),
      self.schedule,
      rules.table(self.rules),
      make_mesh(self.mesh, list(devices or jax.devices())),
      self.settings.seed,
      self.settings.num_microbatches,
      self.settings.spike_deviations,
    )
