"""What a model is made of: plain values that planning and checks read."""

import dataclasses

import flax.linen as nn

from moe.layers.anatomy import (
  AttentionAnatomy,
  ExpertsAnatomy,
  FeedForwardAnatomy,
)


@dataclasses.dataclass(frozen=True)
class LayerAnatomy:
  """One block: attention, and a dense network or experts.

  Attributes:
    attention: of the block.
    feed_forward: the dense network; None where there are experts.
    experts: the sparse layer; None where there is a dense network.
    twin_of: the sparse layer whose active FLOPs the dense network has, in a
      dense twin; else None.
  """

  attention: AttentionAnatomy
  feed_forward: FeedForwardAnatomy | None = None
  experts: ExpertsAnatomy | None = None
  twin_of: ExpertsAnatomy | None = None

  @property
  def network(self) -> FeedForwardAnatomy:
    """The dense network, or one of the experts."""
    return self.experts.expert if self.experts else self.feed_forward


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """A whole model.

  Attributes:
    d_model: D.
    vocab_size: V.
    is_tied: whether the embedding table is the output head too.
    dtype: of activations, such as 'bfloat16'.
    remat: what the backward pass computes again, a policy of
      `moe/models/stack.py` or 'none'.
    prefix: blocks before the first period, in order.
    period: blocks of one period; none where there is no period.
    num_periods: how often it is repeated, with parameters of their own.
    predicts_ahead: whether training has one more block, dense, which predicts
      the token after the next one; `layers` leave it out.
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
    """Attention, which is alike in all blocks."""
    return self.layers[0].attention

  @property
  def experts(self) -> ExpertsAnatomy | None:
    """The sparse layer, alike wherever there is one; None in a dense model."""
    found = (block.experts for block in self.period if block.experts)
    return next(found, None)

  @property
  def num_active(self) -> float:
    """Experts that compute for one token; 0 in a dense model."""
    return self.experts.num_active if self.experts else 0

  @property
  def num_sparse(self) -> int:
    """Blocks with experts."""
    return sum(block.experts is not None for block in self.layers)


def anatomy(model: nn.Module) -> Anatomy:
  """What a model says of itself.

  Args:
    model: such as `decoder.Decoder`.

  Raises:
    ValueError: for the first size or choice that is out of range: every part is
      made once, and checks itself.
  """
  return model.anatomy()
