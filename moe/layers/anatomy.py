"""Descriptions of layers: their sizes and choices as plain values.

Attention and feed-forward layers describe themselves, so that other code need
not know their fields or their kinds. `moe/models/anatomy.py` puts the
descriptions together.
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
    pair_width: multiplications per pair of tokens, averaged over the two
      products: the scores, and the weighted sum of values.
    features: sum of the features of queries, keys, values and head outputs.
    result_features: features of the head outputs.
    kernel: kernel that computes attention, see `attention.self_attend`.
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
    expert: one of the experts.
    shared_width: F of the shared expert, 0 for none.
    group_size: M, tokens that are routed together; 0 for a whole sequence.
    router: the router.
    dispatch: the dispatch of training; None for a layer that mixes tokens
      instead of sending them to experts.
    buffer_factor: size of the receive buffer as a multiple of an even share of
      the rows, if the exchange pools the tokens of its devices; else None. With
      0 the buffer fits all rows that can arrive.
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
    """Mean number of experts of a token, if all experts are used evenly."""
    return self.router.mean_active(self.num_experts)

  def dense_twin(self) -> FeedForwardAnatomy:
    """A dense network as wide as all experts that one token sees."""
    width = round(self.num_active * self.expert.width) + self.shared_width
    return dataclasses.replace(self.expert, width=width)
