"""What layers say of themselves: sizes and choices as plain values.

Each layer class makes its own description, so that nobody outside has to know
its fields or its kind. `moe/models/anatomy.py` puts them together.
"""

import dataclasses

from moe.routing.dispatch import Dropless, Einsum, Sorted
from moe.routing.plan import Router


@dataclasses.dataclass(frozen=True)
class AttentionAnatomy:
  """Attention of one block.

  Attributes:
    num_heads: N.
    num_kv_heads: K.
    pair_width: features that one pair of tokens multiplies: the mean of those
      in scores and those in weighted values.
    features: of queries, keys, values and the heads' result together.
    result_features: of the heads' result.
    kernel: what computes it, see `attention.self_attend`.
  """

  num_heads: int
  num_kv_heads: int
  pair_width: int
  features: int
  result_features: int
  kernel: str


@dataclasses.dataclass(frozen=True)
class FeedForwardAnatomy:
  """A dense feed-forward network.

  Attributes:
    width: F.
    activation: 'swiglu' or 'gelu'.
    num_matrices: 3 with a gate, 2 without.
  """

  width: int
  activation: str
  num_matrices: int


@dataclasses.dataclass(frozen=True)
class ExpertsAnatomy:
  """A sparse layer.

  Attributes:
    num_experts: E.
    expert: one of them.
    shared_width: F of the shared expert, 0 for none.
    group_size: M, tokens that are routed together; 0 for a whole sequence.
    router: who chooses.
    dispatch: how rows get slots in training; None where tokens are mixed and
      not sent.
    buffer_factor: room for the rows that arrive, over an even share, in an
      exchange that pools the tokens of its devices; 0 there for all rows that
      can arrive, None where the exchange pools nothing.
  """

  num_experts: int
  expert: FeedForwardAnatomy
  shared_width: int
  group_size: int
  router: Router
  dispatch: Sorted | Einsum | Dropless | None = None
  buffer_factor: float | None = None

  @property
  def num_active(self) -> float:
    """Experts that compute for one token, when all are used evenly."""
    return self.router.mean_active(self.num_experts)

  def dense_twin(self) -> FeedForwardAnatomy:
    """The dense network of equal active FLOPs: as wide as what a token sees."""
    width = round(self.num_active * self.expert.width) + self.shared_width
    return dataclasses.replace(self.expert, width=width)
