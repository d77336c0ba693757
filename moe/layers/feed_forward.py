"""The dense feed-forward network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.anatomy import FeedForwardAnatomy
from moe.layers.product import activate, einsum
from moe.types import Array

ACTIVATIONS = {'swiglu': jax.nn.silu, 'gelu': jax.nn.gelu}


def network_anatomy(width: int, activation: str) -> FeedForwardAnatomy:
  """The sizes of a dense network or of one expert."""
  num_matrices = 3 if activation == 'swiglu' else 2
  return FeedForwardAnatomy(width, activation, num_matrices)


class FeedForward(nn.Module):
  """Dense feed-forward network without biases.

  Attributes:
    width: F.
    activation: 'swiglu' or 'gelu'.
    dtype: compute dtype; parameters are float32.
    output_scale: factor of the initial values of the last matrix.
  """

  width: int
  activation: str = 'swiglu'
  dtype: jnp.dtype = jnp.float32
  output_scale: float = 1.0

  def __post_init__(self):
    bounds.at_least(1, 'width', self.width, 'the width of a dense layer')
    bounds.one_of('ACTIVATION', self.activation, ACTIVATIONS)
    super().__post_init__()

  def anatomy(self) -> FeedForwardAnatomy:
    """The sizes of this layer."""
    return network_anatomy(self.width, self.activation)

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    """Applies the network to [B, T, D]; the result has the same shape."""
    D, F = x_BTD.shape[-1], self.width

    def product(
      name: str,
      x: Array,
      shape: tuple[int, int],
      names: tuple[str, str],
      scale: float = 1.0,
    ) -> Array:
      init = nn.initializers.variance_scaling(
        scale**2, 'fan_in', 'truncated_normal'
      )
      init_fn = nn.with_logical_partitioning(init, names)
      w = self.param(name, init_fn, shape, jnp.float32).astype(self.dtype)
      return einsum('BTD,DF->BTF', x, w)

    inner, outer = (axes.EMBED, axes.MLP), (axes.MLP, axes.EMBED)
    products = {'up': product('w_up_DF', x_BTD, (D, F), inner)}
    if self.activation == 'swiglu':
      products['gate'] = product('w_gate_DF', x_BTD, (D, F), inner)
    h_BTF = activate(products, self.activation)
    h_BTF = nn.with_logical_constraint(
      h_BTF, (axes.BATCH, axes.LENGTH, axes.MLP)
    )
    return product('w_down_FD', h_BTF, (F, D), outer, self.output_scale)
