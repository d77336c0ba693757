"""Settings for drawing pictures, and the class of a drawn picture."""

import dataclasses
from typing import NamedTuple

import numpy as np

from moe.infer.sampling import Sampling


class Drawn(NamedTuple):
  """One drawn picture.

  Attributes:
    pixels: uint8 [Y, X, 3].
    codes: int32 [codes].
    caption_loss: nats per token of the sentence, given the picture.
  """

  pixels: np.ndarray
  codes: np.ndarray
  caption_loss: float


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How pictures are drawn.

  Attributes:
    guidance: s of `pictures.guided`. 0 ignores the sentence, 1 uses the model
      unchanged, and a larger number strengthens the sentence.
    rerank: number of pictures that are drawn for each one that is kept. The
      kept picture is the one that makes the sentence likeliest (CogView's
      caption loss).
    sampling: temperature, top-k and top-p. At temperature 1, single wrong codes
      spoil small pictures.
    seed: seed of the draws.
  """

  guidance: float = 2.0
  rerank: int = 1
  sampling: Sampling = Sampling(temperature=0.7)
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.guidance <= 100:
      raise ValueError(
        f'guidance={self.guidance} must be from 0 to 100: use 1 for the model'
        ' as it is, and about 2 for pictures that follow the sentence more.'
      )
    if self.rerank < 1:
      raise ValueError(f'rerank={self.rerank} must be at least 1.')
