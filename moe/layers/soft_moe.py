"""Soft MoE: experts see weighted means of tokens instead of tokens."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers import experts, feed_forward
from moe.layers.anatomy import ExpertsAnatomy
from moe.layers.moe_layer import LayerOutputs, TokenInfo
from moe.layers.product import einsum
from moe.routing import balance
from moe.routing.plan import Router
from moe.routing.slots import capacity
from moe.types import Array, Layout, Pair


@dataclasses.dataclass(frozen=True)
class Mixing(Router):
  """Stands for a router in code that computes the cost of a layer."""

  is_causal = is_causal_in_training = False


def _unit(a: Array, dim: int) -> Array:
  """The array divided by its Euclidean norm along a dim."""
  squares = jnp.sum(jnp.square(a), axis=dim, keepdims=True)
  return a * jax.lax.rsqrt(squares + 1e-6)


class SoftMoE(nn.Module):
  """Each expert processes C slots, which are means of the tokens of a group.

  Puigcerver et al. (2023), section 2 and algorithm 1,
  https://arxiv.org/abs/2308.00951. A token x and a slot with the trained vector
  phi have the logit unit(x) . scale unit(phi), where unit(v) = v / |v|. A slot
  is the mean of the tokens, weighted by the softmax over tokens. The output of
  a token is the mean of the slots' outputs, weighted by the softmax over slots.
  No token is dropped and no expert is chosen. Unlike in the paper, padding is
  left out. The layer can replace `moe_layer.MoE` in a block.

  The output of a token depends on all tokens of its group, including later ones
  and those of other documents, so the layer cannot be used to generate text.

  Attributes:
    num_experts: E.
    expert_d_ff: F of each expert.
    top_k: sets the number of slots of an expert, C = M * top_k / E rounded up
      and at most M, so that a token costs as much as with top_k active experts.
    group_size: M, tokens that are mixed with each other; 0 for whole sequences.
    shared_d_ff: width of the shared expert, which sees every token; 0 for none.
    activation: 'swiglu' or 'gelu'.
    layout: mesh axes by use; the experts may not be divided.
    dtype: compute dtype of the experts; logits and softmaxes are float32.
    output_scale: factor of the initial values of the experts' last matrices.
    router_scale: factor of the router's initial values, as in `moe_layer.MoE`;
      no effect here, since the router's vectors are normalised.
  """

  num_experts: int
  expert_d_ff: int
  top_k: int = 2
  group_size: int = 0
  shared_d_ff: int = 0
  activation: str = 'swiglu'
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32
  output_scale: float = 1.0
  router_scale: float = 1.0

  def __post_init__(self):
    at_least, shared = bounds.at_least, self.shared_d_ff
    at_least(1, 'NUM_EXPERTS', self.num_experts, 'experts of a layer')
    at_least(1, 'EXPERT_D_FF', self.expert_d_ff, 'the width of an expert')
    at_least(1, 'TOP_K', self.top_k, 'experts as whose slots a token costs')
    at_least(0, 'SHARED_D_FF', shared, '0 for no shared expert')
    at_least(0, 'GROUP_SIZE', self.group_size, '0 mixes whole sequences')
    bounds.one_of('ACTIVATION', self.activation, feed_forward.ACTIVATIONS)
    super().__post_init__()

  def anatomy(self) -> ExpertsAnatomy:
    """The sizes of this layer; it has no dispatch, since it sends no tokens."""
    return ExpertsAnatomy(
      num_experts=self.num_experts,
      expert=feed_forward.network_anatomy(self.expert_d_ff, self.activation),
      shared_width=self.shared_d_ff,
      group_size=self.group_size,
      # This router only says what the layer costs.
      router=Mixing(num_active=self.top_k),
    )

  @nn.compact
  def __call__(
    self, x_BTD: Array, info: TokenInfo, train: bool
  ) -> tuple[Array, LayerOutputs]:
    """Applies the layer to [B, T, D]; the result has the same shape.

    Training and evaluation compute the same.

    Raises:
      ValueError: if M does not divide T, if the experts are divided, or if
        evaluation gets sequences of 1.
    """
    B, T, D = x_BTD.shape
    M = self.group_size or T
    self._check(T, M)
    if T == 1 and not train:
      raise ValueError(
        'SoftMoE mixes the tokens of a sequence and cannot read token by token,'
        ' got sequences of 1: score whole sequences, or generate with'
        ' moe_layer.MoE.'
      )
    E, C = self.num_experts, capacity(M, self.top_k, self.num_experts, 1.0)
    init = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'truncated_normal', in_axis=0, out_axis=(1, 2)
    )
    phi_DEC = self.param(
      'router',
      nn.with_logical_partitioning(init, (axes.EMBED, None, None)),
      (D, E, C),
      jnp.float32,
    )
    # The scale is a scalar, so its tuple of axis names is empty. A scan over
    # layers adds a name to it.
    ones = nn.with_logical_partitioning(nn.initializers.ones, ())
    scale = self.param('scale', ones, (), jnp.float32)
    weights = experts.params(
      self,
      E,
      D,
      self.expert_d_ff,
      self.activation,
      self.dtype,
      self.output_scale,
    )
    x_GMD, valid_GM = x_BTD.reshape(-1, M, D), info.valid.reshape(-1, M)
    logits_GMEC = jnp.einsum(
      'GMD,DEC->GMEC',
      _unit(x_GMD.astype(jnp.float32), -1),
      scale * _unit(phi_DEC, 0),
      precision=jax.lax.Precision.HIGHEST,
    )
    # -1e30 instead of -inf, so that a group with only padding gives no NaN.
    seen_GMEC = jnp.where(valid_GM[..., None, None], logits_GMEC, -1e30)
    mix_GMEC = jax.nn.softmax(seen_GMEC, axis=1).astype(self.dtype)
    G = x_GMD.shape[0]
    rows_EGCD = einsum('GMEC,GMD->EGCD', mix_GMEC, x_GMD.astype(self.dtype))
    rows_EUD = rows_EGCD.reshape(E, G * C, D)
    out_EUD = experts.apply(weights, rows_EUD, None, None, self.activation)
    share_GMEC = jax.nn.softmax(logits_GMEC, axis=(2, 3))
    y_GMD = einsum(
      'GMEC,EGCD->GMD',
      share_GMEC.astype(self.dtype),
      out_EUD.reshape(E, G, C, D),
    )
    y_GMD = jnp.where(valid_GM[..., None], y_GMD, jnp.zeros((), self.dtype))
    y_BTD = y_GMD.reshape(B, T, D)
    if self.shared_d_ff:
      y_BTD += feed_forward.FeedForward(
        self.shared_d_ff,
        self.activation,
        self.dtype,
        self.output_scale,
        name='shared',
      )(x_BTD)
    return y_BTD, LayerOutputs({}, _statistics(share_GMEC.sum(-1), valid_GM))

  def _check(self, length: int, group_size: int) -> None:
    devices = self.layout.size(self.layout.expert_axes)
    if devices > 1:
      raise ValueError(
        "SoftMoE needs whole experts on each device, got an 'expert' mesh axis"
        f' of {devices}: set MESH_EXPERT = 1, or use moe_layer.MoE.'
      )
    if length % group_size:
      raise ValueError(
        f'GROUP_SIZE={group_size} of SoftMoE must divide the {length} tokens of'
        ' a sequence: choose a divisor, or 0 for the whole sequence.'
      )


def _statistics(share_GME: Array, valid_GM: Array) -> dict[str, Pair]:
  """Metrics of how much each expert contributes to the outputs of tokens."""
  share_GME = jax.lax.stop_gradient(share_GME)
  tokens = valid_GM.sum(dtype=jnp.float32)
  summed = lambda a, where: jnp.sum(jnp.where(where, a, 0.0))
  load_E = jnp.sum(jnp.where(valid_GM[..., None], share_GME, 0.0), axis=(0, 1))
  return {
    'load': (load_E, tokens),
    'entropy': (
      jnp.sum(balance.entropy(share_GME) * valid_GM.astype(jnp.float32)),
      tokens,
    ),
    'confidence': (summed(share_GME.max(axis=-1), valid_GM), tokens),
    'dropped': (jnp.zeros((), jnp.float32), tokens),
  }
