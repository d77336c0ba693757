"""A model's layers and sizes as plain values, for planning and checks."""

import dataclasses

import flax.linen as nn

from moe.layers.anatomy import (
  AttentionAnatomy,
  ExpertsAnatomy,
  FeedForwardAnatomy,
)


@dataclasses.dataclass(frozen=True)
class LayerAnatomy:
  """The layers of one block: attention, then a dense network or experts.

  Attributes:
    attention: the attention layer.
    feed_forward: the dense network; None if the block has experts.
    experts: the sparse layer; None if the block has a dense network.
    twin_of: for a dense twin, the sparse layer with the same active FLOPs; else
      None.
  """

  attention: AttentionAnatomy
  feed_forward: FeedForwardAnatomy | None = None
  experts: ExpertsAnatomy | None = None
  twin_of: ExpertsAnatomy | None = None

  @property
  def network(self) -> FeedForwardAnatomy:
    """The dense network, or a single expert of a sparse block."""
    return self.experts.expert if self.experts else self.feed_forward


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """A whole model.

  Attributes:
    d_model: D.
    vocab_size: V.
    is_tied: whether the embedding table is also the output head.
    dtype: dtype of activations, such as 'bfloat16'.
    remat: rematerialisation policy, a name of `stack.REMAT_POLICIES` or 'none'.
    prefix: blocks before the first period, in order.
    period: the group of blocks that repeats, in order; empty if none repeats.
    num_periods: number of periods; each has its own parameters.
    predicts_ahead: whether training has one more, dense block, which predicts
      the token after the next one; `layers` does not include this block.
  """

  d_model: int
  vocab_size: int
  is_tied: bool
  dtype: str
  remat: str
  prefix: tuple[LayerAnatomy, ...]
  period: tuple[LayerAnatomy, ...]
  num_periods: int
  predicts_ahead: bool = False

  @property
  def layers(self) -> tuple[LayerAnatomy, ...]:
    """All blocks, in order."""
    return self.prefix + self.num_periods * self.period

  @property
  def attention(self) -> AttentionAnatomy:
    """The attention layer, which is the same in all blocks."""
    return self.layers[0].attention

  @property
  def experts(self) -> ExpertsAnatomy | None:
    """The sparse layer, equal in all sparse blocks; None in a dense model."""
    found = (block.experts for block in self.period if block.experts)
    return next(found, None)

  @property
  def num_active(self) -> float:
    """Mean number of experts that process a token; 0 in a dense model."""
    return self.experts.num_active if self.experts else 0

  @property
  def num_sparse(self) -> int:
    """Number of blocks with experts."""
    return sum(block.experts is not None for block in self.layers)


def anatomy(model: nn.Module) -> Anatomy:
  """Returns the layers and sizes of a model, and checks the sizes.

  Args:
    model: a model with an `anatomy` method, such as `decoder.Decoder`.

  Raises:
    ValueError: for the first size or choice that is out of range. Each part
      checks its own sizes when it is built.
  """
  return model.anatomy()
