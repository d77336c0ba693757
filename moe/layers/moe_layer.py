"""The mixture-of-experts layer: route, pack, exchange, experts, and back."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe import axes
from moe.layers import bounds, experts, feed_forward
from moe.layers.anatomy import ExpertsAnatomy
from moe.routing import dispatch, exchange, gates
from moe.routing.plan import Router, RouterInputs, State, group_keys
from moe.types import Array, Layout, Pair


class LayerOutputs(NamedTuple):
  """What an MoE layer returns beside its activations.

  Attributes:
    losses: name -> (sum, weight).
    metrics: name -> (sum, weight).
  """

  losses: dict[str, Pair]
  metrics: dict[str, Pair]


class TokenInfo(NamedTuple):
  """What routers may read of the tokens beside their vectors; each [B, T]."""

  token_ids: Array
  modality: Array
  valid: Array


def check_groups(
  batch: int, length: int, group_size: int, layout: Layout
) -> None:
  """Raises ValueError unless routing groups fit into what one device holds.

  Args:
    batch: sequences of one microbatch, over all devices.
    length: tokens per sequence.
    group_size: M, tokens per routing group.
    layout: how the batch is divided.
  """
  rows = layout.size(layout.batch_axes)
  columns = layout.size(layout.sequence_axes)
  if batch % rows or length % columns:
    raise ValueError(
      f'a microbatch of {batch} sequences of {length} tokens must divide by the'
      f' {rows} x {columns} devices of its mesh axes: change BATCH_SIZE or the'
      ' mesh.'
    )
  b, t = batch // rows, length // columns
  fits = t % group_size == 0 or (
    group_size % t == 0 and columns == 1 and b % (group_size // t) == 0
  )
  if not fits:
    raise ValueError(
      f'GROUP_SIZE={group_size} must divide the {b} x {t} tokens of one device'
      ' and microbatch along whole rows or within them: choose a divisor of the'
      ' sequence length, or a multiple of it that divides the tokens.'
    )


def check_experts(num_experts: int, width: int, shared_width: int) -> None:
  """Raises ValueError if a size of a sparse layer is out of range."""
  bounds.at_least(1, 'NUM_EXPERTS', num_experts, 'experts of a layer')
  bounds.at_least(1, 'EXPERT_D_FF', width, 'the width of an expert')
  bounds.at_least(0, 'SHARED_D_FF', shared_width, '0 for no shared expert')


class MoE(nn.Module):
  """Sparse feed-forward layer: each token passes through a few of E experts.

  Evaluation is dropless, and groups mean nothing there to a router that is
  causal. One that is not sees groups of M tokens as in training, runs of the
  batch's tokens whatever the mesh, the last one filled up with padding.

  Attributes:
    num_experts: E.
    expert_d_ff: F of each expert.
    top_k: experts per token, or their mean where experts choose.
    router: makes the router, given `num_active`.
    dispatch: makes the dispatch of training.
    exchange: makes the exchange of training.
    group_size: M, tokens per routing group; capacity and noise are per group,
      so they do not depend on the number of devices.
    shared_d_ff: width of the shared expert, which sees every token; 0 for none.
    activation: 'swiglu' or 'gelu'.
    layout: mesh axes by use; the default is one device.
    dtype: compute dtype of the experts; routing is float32.
  """

  num_experts: int
  expert_d_ff: int
  top_k: int = 2
  router: Callable[..., Router] = gates.TopK
  dispatch: Callable = dispatch.Sorted
  exchange: Callable = exchange.AllToAll
  group_size: int = 1024
  shared_d_ff: int = 0
  activation: str = 'swiglu'
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    check_experts(self.num_experts, self.expert_d_ff, self.shared_d_ff)
    bounds.at_least(
      1, 'GROUP_SIZE', self.group_size, 'tokens that are routed together'
    )
    feed_forward.check_activation(self.activation)
    super().__post_init__()

  def anatomy(self) -> ExpertsAnatomy:
    """What this layer is made of, in training.

    Raises:
      ValueError: if router, dispatch or exchange refuse their settings, or a
        token is to see more experts than there are.
    """
    router, exchanger = self.make_router(), self.exchange()
    choices = router.num_logits(self.num_experts)
    if router.num_active > choices:
      raise ValueError(
        f'TOP_K={router.num_active} must be at most the {choices} experts of a'
        ' layer: lower it, or raise NUM_EXPERTS.'
      )
    is_pooled = isinstance(exchanger, exchange.Ragged)
    return ExpertsAnatomy(
      num_experts=self.num_experts,
      expert=feed_forward.network(self.expert_d_ff, self.activation),
      shared_width=self.shared_d_ff,
      group_size=self.group_size,
      router=router,
      dispatch=self.dispatch(),
      buffer_factor=exchanger.buffer_factor if is_pooled else None,
    )

  def update_state(self, state: dict[str, State]) -> dict[str, State]:
    """This layer's state after a step: its router acts on what it observed.

    Args:
      state: 'router' -> what the router carries; arrays may have leading dims,
        one for each layer that these settings stand for.
    """
    return {'router': self.make_router().update(state['router'])}

  @nn.compact
  def __call__(
    self, x_BTD: Array, info: TokenInfo, train: bool
  ) -> tuple[Array, LayerOutputs]:
    """[B, T, D] to [B, T, D]; dropless unless training."""
    feed_forward.check_activation(self.activation)
    self._check_experts()
    router = self.make_router()
    if train:
      check_groups(*info.valid.shape, self.group_size, self.layout)
      self._check_exchange()
    elif x_BTD.shape[1] == 1 and not router.is_causal:
      raise ValueError(
        f'{type(router).__name__} chooses among all tokens of a group and'
        ' cannot read token by token, got sequences of 1: score whole'
        ' sequences, or write with another ROUTER, such as @gates.TopK.'
      )
    E, D = self.num_experts, x_BTD.shape[-1]
    w_DE = self.param(
      'router',
      nn.with_logical_partitioning(
        nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal'),
        (axes.EMBED, None),
      ),
      (D, router.num_logits(E)),
      jnp.float32,
    )
    weights = experts.params(self, E, D, self.expert_d_ff, self.activation)
    weights = {k: w.astype(self.dtype) for k, w in weights.items()}
    key = (
      self.make_rng('router') if self.has_rng('router') else jax.random.key(0)
    )
    # Carried, not trained; routers without state have no variable.
    carried = router.init_state(E) and self.variable(
      'state', 'router', router.init_state, E
    )
    y_BTD, outputs = self._sharded(
      x_BTD, w_DE, weights, info, carried.value if carried else {}, key, train
    )
    if carried and train:
      carried.value = router.observe(carried.value, outputs.metrics)
    if self.shared_d_ff:
      y_BTD += feed_forward.FeedForward(
        self.shared_d_ff, self.activation, self.dtype, name='shared'
      )(x_BTD)
    return y_BTD, outputs

  def make_router(self) -> Router:
    """The router of this layer."""
    return self.router(num_active=self.top_k)

  def _check_experts(self) -> None:
    devices = self.layout.size(self.layout.expert_axes)
    if self.num_experts % devices:
      raise ValueError(
        f"num_experts={self.num_experts} must divide by the 'expert' mesh axis"
        f' ({devices}): use a multiple of {devices}, or shrink MESH_EXPERT.'
      )
    tensor = self.layout.size(self.layout.tensor_axes)
    if self.expert_d_ff % tensor:
      raise ValueError(
        f"EXPERT_D_FF={self.expert_d_ff} must divide by the 'model' mesh axis"
        f' ({tensor}): use a multiple of {tensor}, or shrink MESH_MODEL.'
      )

  def _check_exchange(self) -> None:
    lay = self.layout
    shared = set(lay.expert_axes) & set(lay.batch_axes)
    if shared and isinstance(self.exchange(), exchange.Replicated):
      raise ValueError(
        'exchange.Replicated needs the same tokens on all devices of the expert'
        f' axis, got {sorted(shared)}, which divides the batch in training: use'
        ' exchange.AllToAll, exchange.Ragged or exchange.AllGather.'
      )

  def _evaluated(self, batch: int, length: int) -> Layout:
    """The layout of a batch that is not trained on.

    Where a router needs whole groups, axes that would divide one are left out,
    and their devices see the same tokens.
    """
    lay = self.layout.dividing(batch, length)
    if self.make_router().is_causal:
      return lay
    tokens = lambda: batch // lay.size(lay.batch_axes) * length
    columns = lay.size(lay.sequence_axes)
    if columns > 1 and (length // columns) % self.group_size:
      lay = dataclasses.replace(lay, sequence_axes=())
    while lay.batch_axes and tokens() % self.group_size:
      lay = dataclasses.replace(lay, batch_axes=lay.batch_axes[:-1])
    return lay

  def _sharded(self, x_BTD, w_DE, weights, info, state, key, train):
    """Runs `_local` on every device's part of the batch and of the experts."""
    lay = self.layout if train else self._evaluated(*x_BTD.shape[:2])

    def local(*arrays):
      return self._local(*arrays, lay, train)

    if not lay.sizes:
      return local(x_BTD, w_DE, weights, info, state, key)
    spec = lambda *names: P(*(n or None for n in names))
    tokens = spec(lay.batch_axes, lay.sequence_axes)
    up = spec(lay.expert_axes, (), lay.tensor_axes)
    down = spec(lay.expert_axes, lay.tensor_axes, ())
    weight_specs = {k: down if 'down' in k else up for k in weights}
    info_specs = TokenInfo(tokens, tokens, tokens)
    return jax.shard_map(
      local,
      in_specs=(tokens, P(), weight_specs, info_specs, P(), P()),
      out_specs=(tokens, P()),
      check_vma=False,
    )(x_BTD, w_DE, weights, info, state, key)

  def _local(self, x_BTD, w_DE, weights, info, state, key, lay, train):
    """One device: its tokens, its experts; sums go over all batch axes."""
    B, T, D = x_BTD.shape
    router = self.make_router()
    M = self.group_size
    if (B * T) % M and router.is_causal:
      M = B * T
    groups = lambda a: _filled(a.reshape(B * T, *a.shape[2:]), M)
    x_GMD, valid_GM = groups(x_BTD), groups(info.valid)
    G = x_GMD.shape[0]
    keys_G = group_keys(key, _group_indices(G, max(1, G // B), lay))
    # HIGHEST: TPUs would multiply float32 in bfloat16 otherwise.
    logits_GME = jnp.einsum(
      'GMD,DE->GME',
      router.perturb(x_GMD, keys_G, train).astype(jnp.float32),
      w_DE,
      precision=jax.lax.Precision.HIGHEST,
    )
    inputs = RouterInputs(
      x_GMD,
      logits_GME,
      groups(info.token_ids),
      groups(info.modality),
      valid_GM,
      0 if lay.sequence_axes else T,
      lay.batch_axes + lay.sequence_axes,
    )
    plan = router.route(inputs, state, keys_G, train)
    if train:
      dispatcher, exchanger = self.dispatch(), self.exchange()
    else:
      is_divided = set(lay.expert_axes) <= set(lay.batch_axes)
      dispatcher = dispatch.Dropless()
      exchanger = exchange.AllGather() if is_divided else exchange.Replicated()
    active = router.mean_active(self.num_experts)
    even = math.ceil(G * M * active)

    def through(rows, weight, count_E):
      if count_E is None:
        return experts.slots(weights, rows, weight, self.activation)
      return experts.runs(weights, rows, weight, count_E, self.activation, even)

    held = exchange.Experts(self.num_experts, active, lay.expert_axes, through)
    y_GMD, traffic = exchanger.apply(x_GMD, plan, dispatcher, held)
    if lay.tensor_axes:
      y_GMD = jax.lax.psum(y_GMD, lay.tensor_axes)
    if plan.own_weight_GM is not None:
      own_GM1 = plan.own_weight_GM[..., None]
      y_GMD += (x_GMD.astype(jnp.float32) * own_GM1).astype(y_GMD.dtype)
    padding = jnp.sum(~info.valid, dtype=jnp.float32)
    outputs = LayerOutputs(
      plan.losses,
      {
        **plan.statistics,
        **traffic,
        'padding': (padding, jnp.float32(info.valid.size)),
      },
    )
    if inputs.batch_axes:
      outputs = jax.lax.psum(outputs, inputs.batch_axes)
    return y_GMD.reshape(G * M, D)[: B * T].reshape(B, T, D), outputs


def _filled(a_N: Array, M: int) -> Array:
  """[N, ...] as groups [G, M, ...], the last one filled up with zeros."""
  fill = -len(a_N) % M
  if fill:
    a_N = jnp.pad(a_N, [(0, fill), *[(0, 0)] * (a_N.ndim - 1)])
  return a_N.reshape(-1, M, *a_N.shape[1:])


def _group_indices(num_groups: int, per_row: int, lay: Layout) -> Array:
  """Places of this device's groups in the whole batch, row after row."""
  index = lambda names: (
    jax.lax.axis_index(names).astype(jnp.int32) if names else 0
  )
  local_G = jnp.arange(num_groups, dtype=jnp.int32)
  row_G = index(lay.batch_axes) * (num_groups // per_row) + local_G // per_row
  columns = lay.size(lay.sequence_axes)
  part_G = row_G * columns + index(lay.sequence_axes)
  return part_G * per_row + local_G % per_row
