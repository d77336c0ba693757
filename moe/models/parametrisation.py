"""Keeps the best learning rate the same for all widths and depths."""

import dataclasses
import re

from moe import bounds

# Paths of hidden matrices, of which both dims grow with the model's width.
_HIDDEN = re.compile(r'.*/(attention/(?!.*norm)\w+|w_\w+)')
_TABLE = re.compile(r'(embedding|output)/table')


@dataclasses.dataclass(frozen=True)
class CompleteP:
  """Maximal update parametrisation in width (muP), and CompleteP in depth.

  Yang et al. (2022), table 8, https://arxiv.org/abs/2203.03466; Dey et al.
  (2025), table 1 with alpha = 1, https://arxiv.org/abs/2505.01618; routers are
  treated like output layers, as in Malasnicki et al. (2025),
  https://arxiv.org/abs/2508.09752. The table has the factors of three
  quantities. w is the width divided by the base width; l is the number of
  layers divided by the base depth. At the base width and depth all factors are
  1.

    parameters         initial deviation   learning rate      output
    hidden matrices    1                   1 / w              -
    the same, in Muon  1                   1 / sqrt(w)        -
    router             1 / sqrt(w)         1 / w              -
    embedding, head    1                   1 / sqrt(w)        logits 1 / sqrt(w)
    all others         1                   1                  -
    residual branches  -                   -                  1 / l

  The tables of embedding and head have the initial deviation 1 / sqrt(width),
  and embeddings are multiplied by sqrt(width), the default `embedding_scale`.
  Because of the factor 1 / sqrt(w) of the learning rate, a step changes
  embeddings by the same amount at each width. The product of learning rate and
  weight decay is the same for all widths. This assumes that the number of heads
  and all hidden widths grow with the model's width, but not the width of a
  head. Unlike in CompleteP, Adam's epsilon does not change.

  Attributes:
    base_width: width at which nothing changes.
    base_depth: number of layers at which nothing changes.
  """

  base_width: int
  base_depth: int

  def __post_init__(self):
    found_at = 'the size for which the learning rate was found'
    for name in ('base_width', 'base_depth'):
      bounds.at_least(1, name, getattr(self, name), found_at)

  def logits_scale(self, d_model: int) -> float:
    """Factor of the hidden states that the head reads."""
    return (self.base_width / d_model) ** 0.5

  def router_scale(self, d_model: int) -> float:
    """Factor of the initial values of routers."""
    return (self.base_width / d_model) ** 0.5

  def residual_scale(self, num_layers: int) -> float:
    """Factor of the output of a residual branch."""
    return self.base_depth / num_layers

  def rate(self, name: str, is_orthogonal: bool, d_model: int) -> float:
    """Factor of a parameter's learning rate; its weight decay has no factor.

    Args:
      name: path of a parameter, 'a/b/c'.
      is_orthogonal: whether its updates are orthogonal matrices (Muon).
      d_model: width of the model.
    """
    ratio = self.base_width / d_model
    if _TABLE.fullmatch(name):
      return ratio**0.5
    if name.endswith('/router'):
      return ratio
    if _HIDDEN.fullmatch(name):
      return ratio**0.5 if is_orthogonal else ratio
    return 1.0
