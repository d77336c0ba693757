"""The mixture-of-experts layer, in the order in which tokens travel.

Each device of the mesh does this for its tokens and its experts:

  1. Group: tokens form groups of M, and the router's matrix gives logits.
  2. Route: the router makes a plan of rows, each a token, an expert, a weight.
  3. Send: the dispatch gives each row a slot, and the exchange brings it to the
     device of its expert.
  4. Experts: each expert computes the rows that arrived, times their weights.
  5. Collect: outputs go back and are added up by token.
  6. Sum: losses and statistics are added up over all devices.

`MoE._forward` does these six steps. `MoE.__call__` makes the parameters,
carries the router's state and adds the shared expert.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe import axes, bounds
from moe.layers import experts, feed_forward, moe_parts
from moe.layers.anatomy import ExpertsAnatomy
from moe.routing import dispatch, exchange, gates, modality
from moe.routing.dispatch import Dispatch
from moe.routing.exchange import Exchange
from moe.routing.plan import Router, RouterInputs, State
from moe.types import Array, Layout, Pair


class LayerOutputs(NamedTuple):
  """What an MoE layer returns beside its activations: name -> (sum, weight)."""

  losses: dict[str, Pair]
  metrics: dict[str, Pair]


class TokenInfo(NamedTuple):
  """What routers may read about tokens besides their vectors; each [B, T]."""

  token_ids: Array
  modality: Array
  valid: Array


def check_groups(
  batch: int, length: int, group_size: int, rows: int, columns: int
) -> None:
  """Raises ValueError unless whole routing groups fit on each device.

  Args:
    batch: sequences of one microbatch, over all devices.
    length: tokens per sequence.
    group_size: M, tokens per routing group.
    rows: devices that divide the sequences of a batch.
    columns: devices that divide the tokens of a sequence.
  """
  if batch % rows or length % columns:
    raise ValueError(
      f'a microbatch of {batch} sequences of {length} tokens must be divisible'
      f' by the {rows} x {columns} devices of its mesh axes: change BATCH_SIZE'
      ' or the mesh.'
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


def tokens_per_group(sequence_length: int) -> int:
  """The default number M of tokens per group; it does not depend on devices.

  Returns:
    The greatest divisor of the sequence length from 128 to 1024. If there is
    none, the length itself, since small groups drop many tokens.
  """
  meaning = 'tokens per sequence'
  bounds.at_least(1, 'sequence_length', sequence_length, meaning)
  sizes = range(min(128, sequence_length), min(1024, sequence_length) + 1)
  divisors = [size for size in sizes if sequence_length % size == 0]
  return max(divisors, default=sequence_length)


class MoE(nn.Module):
  """Sparse feed-forward layer: each token passes through a few of E experts.

  In evaluation experts have no capacity, so with a causal router the outputs do
  not depend on the groups. A router that is not causal sees groups of M
  consecutive tokens on any mesh, as in training. Padding fills the last group.

  Attributes:
    num_experts: E.
    expert_d_ff: F of each expert.
    top_k: experts per token; their mean number if experts choose tokens.
    router: makes the router, given `num_active`.
    dispatch: makes the dispatch of training.
    exchange: makes the exchange of training.
    group_size: M, tokens per routing group. Noise is per group, so it does not
      depend on the number of devices. The same holds for capacity, except with
      `exchange.Ragged`.
    shared_d_ff: width of the shared expert, which sees every token; 0 for none.
    activation: 'swiglu' or 'gelu'.
    layout: mesh axes by use; the default is one device.
    dtype: compute dtype of the experts; routing is float32.
    output_scale: factor of the initial values of the experts' last matrices.
    router_scale: factor of the router's initial values.
    num_modalities: the router's statistics and drops are also reported for each
      of the first `num_modalities` modalities; 1 reports only all tokens.
  """

  num_experts: int
  expert_d_ff: int
  top_k: int = 2
  router: Callable[..., Router] = gates.TopK
  dispatch: Callable[..., Dispatch] = dispatch.Sorted
  exchange: Callable[..., Exchange] = exchange.AllToAll
  group_size: int = 1024
  shared_d_ff: int = 0
  activation: str = 'swiglu'
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32
  output_scale: float = 1.0
  router_scale: float = 1.0
  num_modalities: int = 1

  def __post_init__(self):
    sizes = moe_parts.MoESizes(
      self.num_experts,
      self.expert_d_ff,
      self.shared_d_ff,
      self.group_size,
      self.activation,
      self.num_modalities,
    )
    factories = self.router, self.dispatch, self.exchange
    parts = moe_parts.make_parts(sizes, self.top_k, *factories, self.layout)
    # `_parts` is not a field, so flax neither copies nor compares it.
    object.__setattr__(self, '_parts', parts)
    super().__post_init__()

  def anatomy(self) -> ExpertsAnatomy:
    """The sizes and choices of this layer in training."""
    router, exchanger = self._parts.router, self._parts.exchange
    is_pooled = isinstance(exchanger, exchange.Ragged)
    return ExpertsAnatomy(
      num_experts=self.num_experts,
      expert=feed_forward.network_anatomy(self.expert_d_ff, self.activation),
      shared_width=self.shared_d_ff,
      group_size=self.group_size,
      router=router,
      dispatch=self._parts.dispatch,
      buffer_factor=exchanger.buffer_factor if is_pooled else None,
    )

  def update_state(self, state: dict[str, State]) -> dict[str, State]:
    """The layer's state after a step, updated from what the router observed.

    Args:
      state: 'router' -> the router's state. Arrays may have a leading dim, with
        an entry for each layer that has the settings of this module.
    """
    return {'router': self._parts.router.update(state['router'])}

  @nn.compact
  def __call__(
    self, x_BTD: Array, info: TokenInfo, train: bool
  ) -> tuple[Array, LayerOutputs]:
    """Applies the layer to [B, T, D]; the result has the same shape."""
    router = self._parts.router
    E, D = self.num_experts, x_BTD.shape[-1]
    init = nn.initializers.variance_scaling(
      self.router_scale**2, 'fan_in', 'truncated_normal'
    )
    w_DE = self.param(
      'router',
      nn.with_logical_partitioning(init, (axes.EMBED, None)),
      (D, E + router.num_added),
      jnp.float32,
    )
    weights = experts.params(
      self,
      E,
      D,
      self.expert_d_ff,
      self.activation,
      self.dtype,
      self.output_scale,
    )
    key = (
      self.make_rng('router') if self.has_rng('router') else jax.random.key(0)
    )
    # The state is not trained. A router without state has no variable.
    carried = self._parts.has_state and self.variable(
      'state', 'router', router.init_state, E
    )
    y_BTD, outputs = self._on_devices(
      x_BTD, w_DE, weights, info, carried.value if carried else {}, key, train
    )
    if carried and train:
      carried.value = router.observe(carried.value, outputs.metrics)
    if self.shared_d_ff:
      y_BTD += feed_forward.FeedForward(
        self.shared_d_ff,
        self.activation,
        self.dtype,
        self.output_scale,
        name='shared',
      )(x_BTD)
    return y_BTD, outputs

  def _evaluation_layout(self, batch: int, length: int) -> Layout:
    """The layout of a batch of evaluation.

    The batch may be too small to be divided over all mesh axes. Then some axes
    are left out. If the router needs whole groups, axes that would divide a
    group are left out as well. The devices of an axis that is left out see the
    same tokens.

    Raises:
      ValueError: if the router needs whole groups and gets single tokens.
    """
    lay, router = self.layout.dividing(batch, length), self._parts.router
    if router.is_causal:
      return lay
    if length == 1:
      raise ValueError(
        f'{type(router).__name__} chooses among all tokens of a group and'
        ' cannot read token by token, got sequences of 1: score whole'
        ' sequences, or generate with another ROUTER, such as @gates.TopK.'
      )
    tokens = lambda: batch // lay.size(lay.batch_axes) * length
    columns = lay.size(lay.sequence_axes)
    if columns > 1 and (length // columns) % self.group_size:
      lay = dataclasses.replace(lay, sequence_axes=())
    while lay.batch_axes and tokens() % self.group_size:
      lay = dataclasses.replace(lay, batch_axes=lay.batch_axes[:-1])
    return lay

  def _on_devices(self, x_BTD, w_DE, weights, info, state, key, train):
    """Runs `_forward` on each device, on its part of batch and experts.

    Raises:
      ValueError: unless batch, mesh, router and exchange fit together.
    """
    B, T, _ = x_BTD.shape
    lay, parts = self.layout, self._parts
    if train:
      check_groups(B, T, self.group_size, *parts.devices)
      shared = set(lay.expert_axes) & set(lay.batch_axes)
      if shared and isinstance(parts.exchange, exchange.Replicated):
        raise ValueError(
          'exchange.Replicated needs the same tokens on all devices of the'
          f' expert axis, got {sorted(shared)}, which divides the batch in'
          ' training: use AllToAll, Ragged or AllGather.'
        )
    else:
      lay = self._evaluation_layout(B, T)
    forward = functools.partial(self._forward, lay, train)
    if lay.sizes:
      tokens = P(lay.batch_axes or None, lay.sequence_axes or None)
      divided = {
        axes.EXPERT: lay.expert_axes or None,
        axes.EXPERT_MLP: lay.tensor_axes or None,
      }
      weight_specs = {}
      for name in weights:
        weight_specs[name] = P(*map(divided.get, experts.AXES[name]))
      forward = jax.shard_map(
        forward,
        in_specs=(tokens, P(), weight_specs, tokens, P(), P()),
        out_specs=(tokens, P()),
        check_vma=False,
      )
    return forward(x_BTD, w_DE, weights, info, state, key)

  def _forward(self, lay, train, x_BTD, w_DE, weights, info, state, key):
    """The six steps at the top of this file, on one device."""
    B, T, D = x_BTD.shape
    parts = self._parts

    # 1. Group.
    inputs, keys_G = self._router_inputs(lay, train, x_BTD, w_DE, info, key)
    x_GMD = inputs.x_GMD
    G, M, _ = x_GMD.shape

    # 2. Route.
    plan = parts.router.route(inputs, state, keys_G, train)

    # 3. Send. In evaluation no expert is ever full.
    dispatcher, exchanger = dispatch.Dropless(), exchange.Replicated()
    if train:
      dispatcher, exchanger = parts.dispatch, parts.exchange
    elif set(lay.expert_axes) <= set(lay.batch_axes):
      exchanger = exchange.AllGather()
    devices = jax.lax.axis_size(lay.expert_axes) if lay.expert_axes else 1
    where = exchange.ExpertPlacement(
      self.num_experts, parts.active, lay.expert_axes, devices
    )
    arrived = exchanger.send(x_GMD, plan, dispatcher, where)

    # 4. Experts. A buffer that is longer than an even share is computed in
    # chunks of equal length, which are at most an even share.
    out = experts.apply(
      weights,
      arrived.rows,
      arrived.weight,
      arrived.count_E,
      self.activation,
      chunk=math.ceil(G * M * parts.active),
    )

    # 5. Collect. Devices of a tensor axis each have a part of the hidden layer,
    # so their outputs are added up.
    y_GMD = exchanger.collect(out, arrived)
    if lay.tensor_axes:
      y_GMD = jax.lax.psum(y_GMD, lay.tensor_axes)
    if plan.own_weight_GM is not None:
      own_GM1 = plan.own_weight_GM[..., None]
      y_GMD += (x_GMD.astype(jnp.float32) * own_GM1).astype(y_GMD.dtype)
    y_BTD = y_GMD.reshape(G * M, D)[: B * T].reshape(B, T, D)

    # 6. Sum metrics and losses over the devices.
    padding = jnp.sum(~info.valid, dtype=jnp.float32)
    metrics = {
      **plan.statistics,
      **arrived.traffic,
      'padding': (padding, jnp.float32(info.valid.size)),
    }
    if self.num_modalities > 1:
      experts_GM = exchange.experts_of_tokens(exchanger, arrived)
      metrics |= modality.drops(inputs, plan, experts_GM)
    outputs = LayerOutputs(plan.losses, metrics)
    if inputs.batch_axes:
      outputs = jax.lax.psum(outputs, inputs.batch_axes)
    return y_BTD, outputs

  def _router_inputs(self, lay, train, x_BTD, w_DE, info, key):
    """The router's inputs, in groups of M tokens, and a key for each group."""
    router, M = self._parts.router, self.group_size
    B, T, _ = x_BTD.shape
    if (B * T) % M and router.is_causal:
      M = B * T
    x_GMD = _in_groups(x_BTD, M)
    # A random key depends on the group's index in the whole batch. So a group
    # has the same noise on any number of devices.
    row = jax.lax.axis_index(lay.batch_axes) if lay.batch_axes else 0
    column, columns = 0, 1
    if lay.sequence_axes:
      column = jax.lax.axis_index(lay.sequence_axes)
      columns = jax.lax.axis_size(lay.sequence_axes)
    G = len(x_GMD)
    per_row = max(1, G // B)
    local_G = jnp.arange(G, dtype=jnp.int32)
    row_G = row * (G // per_row) + local_G // per_row
    index_G = (row_G * columns + column) * per_row + local_G % per_row
    keys_G = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index_G)
    routed_GMD = x_GMD
    if train and router.jitter:
      routed_GMD = router.perturb(x_GMD, keys_G)
    # Without HIGHEST, TPUs would multiply float32 numbers in bfloat16.
    logits_GME = jnp.einsum(
      'GMD,DE->GME',
      routed_GMD.astype(jnp.float32),
      w_DE,
      precision=jax.lax.Precision.HIGHEST,
    )
    inputs = RouterInputs(
      x_GMD,
      logits_GME,
      _in_groups(info.token_ids, M),
      _in_groups(info.modality, M),
      _in_groups(info.valid, M),
      0 if lay.sequence_axes else T,
      lay.batch_axes + lay.sequence_axes,
      self.num_modalities,
    )
    return inputs, keys_G


def _in_groups(a: Array, M: int) -> Array:
  """[B, T, ...] as groups [G, M, ...]; zeros fill the last group."""
  flat = a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])
  fill = -len(flat) % M
  if fill:
    flat = jnp.pad(flat, [(0, fill), *[(0, 0)] * (flat.ndim - 1)])
  return flat.reshape(-1, M, *flat.shape[1:])
