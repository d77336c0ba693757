"""The stack of blocks: a dense prefix, then a scan over repeated periods."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.attention import MaskSpec
from moe.layers.moe_layer import LayerOutputs, TokenInfo
from moe.models.anatomy import LayerAnatomy
from moe.models.block import Block
from moe.types import Array, Layout, Pair, PyTree

# Rematerialisation policy -> names of the tensors of each block that it keeps.
# The backward pass computes all other tensors again. The code that makes a
# tensor names it by `checkpoint_name`.
REMAT_NAMES = {
  # The output of attention before its last product, so that the backward pass
  # does not run the kernel again.
  'attention': ('attention_out',),
  # Tensors that came from other devices, so that no exchange is repeated: sums
  # over divided heads, and rows before and after the experts.
  'exchange': ('attention_residual', 'moe_packed', 'moe_out'),
  # Both of the above. Hidden layers, which are large, are still recomputed.
  'attention_exchange': (
    'attention_out',
    'attention_residual',
    'moe_packed',
    'moe_out',
  ),
}
REMAT_POLICIES = {
  # Recompute everything inside a period.
  'full': jax.checkpoint_policies.nothing_saveable,
  # Keep the results of products with parameters.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  **{
    policy: jax.checkpoint_policies.save_only_these_names(*names)
    for policy, names in REMAT_NAMES.items()
  },
}
# Choices for the initial values of the last product of each residual branch.
OUTPUT_INITS = ('fan_in', 'depth', 'zero')


class Period(nn.Module):
  """The blocks that repeat, all dense or the last one sparse.

  Attributes:
    block: makes a block.
    kinds: for each block, whether it is sparse.
    layout: mesh axes by use.
    dtype: compute dtype.
    train: whether this is training.
    keeps_state: whether the activations after the period are kept.
  """

  block: Callable[..., Block]
  kinds: tuple[bool, ...]
  layout: Layout
  dtype: jnp.dtype
  train: bool
  keeps_state: bool = False

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    cache: tuple | None,
    mask: MaskSpec,
    info: TokenInfo,
  ) -> tuple[Array, tuple]:
    """One period; arguments are in the order of `nn.scan`: carry, xs, rest."""
    caches = []
    outputs = LayerOutputs({}, {})
    for i, is_sparse in enumerate(self.kinds):
      block = self.block(
        is_sparse=is_sparse,
        layout=self.layout,
        dtype=self.dtype,
        name=f'block_{i}',
      )
      layer_cache = None if cache is None else cache[i]
      x_BTD, layer_cache, outputs = block(
        x_BTD, mask, info, layer_cache, self.train
      )
      caches.append(layer_cache)
    state_BTD = x_BTD if self.keeps_state else None
    caches = None if cache is None else tuple(caches)
    return x_BTD, (caches, outputs, state_BTD)


class Stack(nn.Module):
  """Prefix of dense blocks, then repeated periods of `moe_every` blocks.

  Attributes:
    block: makes a block.
    num_layers: number of all blocks.
    moe_every: blocks of a period, of which the last is sparse; 0 for a dense
      stack.
    num_dense_prefix: dense blocks before the first period.
    remat: 'none', or a name of `REMAT_POLICIES`; also for the prefix's blocks.
    output_init: initial values of the last product of each residual branch:
      'fan_in' as for all other products; 'depth' divides these values by
      sqrt(2 * num_layers) (Radford et al. 2019, GPT-2, section 2.3); 'zero'.
    residual_scale: factor of the output of each residual branch.
    router_scale: factor of the router's initial values.
    unroll: periods per iteration of the loop. If one iteration has all periods,
      there is no loop: compiling takes longer, and the compiler's FLOP counts
      are complete.
    mixes_states: whether the result is a learned mean of the activations after
      each period, in place of the last ones.
    layout: mesh axes by use.
    dtype: compute dtype.
  """

  block: Callable[..., Block]
  num_layers: int
  moe_every: int = 1
  num_dense_prefix: int = 0
  remat: str = 'none'
  output_init: str = 'fan_in'
  residual_scale: float = 1.0
  router_scale: float = 1.0
  unroll: int = 1
  mixes_states: bool = False
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    at_least = bounds.at_least
    at_least(1, 'NUM_LAYERS', self.num_layers, 'blocks of the model')
    at_least(0, 'NUM_DENSE_PREFIX', self.num_dense_prefix, 'of these, dense')
    at_least(0, 'MOE_EVERY', self.moe_every, '0 makes every block dense')
    at_least(1, 'UNROLL', self.unroll, 'periods that one pass runs')
    bounds.one_of('REMAT', self.remat, ('none', *REMAT_POLICIES))
    bounds.one_of('OUTPUT_INIT', self.output_init, OUTPUT_INITS)
    super().__post_init__()

  def num_periods(self) -> int:
    """Number of scanned periods.

    Raises:
      ValueError: if the layers do not divide into periods.
    """
    rest = self.num_layers - self.num_dense_prefix
    if rest < 0 or rest % max(1, self.moe_every):
      raise ValueError(
        f'NUM_LAYERS={self.num_layers} less NUM_DENSE_PREFIX='
        f'{self.num_dense_prefix} must be a multiple of MOE_EVERY='
        f'{self.moe_every}: change one of them.'
      )
    return rest // max(1, self.moe_every)

  def kinds(self) -> tuple[bool, ...]:
    """For each block of a period, whether it is sparse; () without periods."""
    if not self.num_periods():
      return ()
    return (False,) * (self.moe_every - 1) + (self.moe_every > 0,)

  def anatomy(self) -> tuple[tuple[LayerAnatomy, ...], ...]:
    """(blocks of the prefix, blocks of one period).

    Raises:
      ValueError: if the layers do not divide into periods.
    """
    # With parent=None these are not submodules; only their sizes are read.
    block = functools.partial(self.block, parent=None)
    prefix = range(self.num_dense_prefix)
    return (
      tuple(block().anatomy() for _ in prefix),
      tuple(block(is_sparse=kind).anatomy() for kind in self.kinds()),
    )

  def update_state(self, state: PyTree) -> PyTree:
    """State of the periods after a step; the prefix has no state."""
    block = self.block(parent=None)
    periods = state['periods']
    return {
      'periods': {name: block.update_state(periods[name]) for name in periods}
    }

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Shapes of `Cache.layers`, which the attention layers fill."""
    block = self.block(parent=None)
    attention = block.attention(dtype=self.dtype, parent=None)
    layer = attention.cache_shapes(batch_size, length)
    periods = self.num_periods()
    stacked = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct((periods, *s.shape), s.dtype), layer
    )
    return {
      'prefix': (layer,) * self.num_dense_prefix,
      'periods': (stacked,) * len(self.kinds()),
    }

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    mask: MaskSpec,
    info: TokenInfo,
    cache: PyTree | None,
    train: bool,
  ) -> tuple[Array, PyTree | None, dict[str, Pair], dict[str, Pair]]:
    """Returns ([B, T, D], cache, mean losses, metrics by sparse layer)."""
    policy, make_block = self.policy(), self.scaled_block()
    prefix = []
    for i in range(self.num_dense_prefix):
      block = make_block(
        layout=self.layout, dtype=self.dtype, name=f'prefix_{i}'
      )
      layer_cache = None if cache is None else cache['prefix'][i]
      run = lambda block, *inputs: block(*inputs, train)
      if policy:
        run = nn.remat(run, policy=policy)
      x_BTD, layer_cache, _ = run(block, x_BTD, mask, info, layer_cache)
      prefix.append(layer_cache)
    if not self.num_periods():
      return x_BTD, cache and {'prefix': tuple(prefix), 'periods': ()}, {}, {}
    # If the compiler sees the recomputation and the forward pass together, it
    # may merge them, and all tensors are kept. In a loop with one period per
    # iteration it does not see both, so nothing has to prevent this.
    is_visible = self.unroll > 1 or self.num_periods() == 1
    rematted = functools.partial(
      nn.remat, policy=policy, prevent_cse=is_visible
    )
    period = nn.scan(
      rematted(Period) if policy else Period,
      variable_axes={'params': 0, 'state': 0},
      split_rngs={'params': True, 'router': True, 'dropout': True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      out_axes=0,
      length=self.num_periods(),
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )(
      block=make_block,
      kinds=self.kinds(),
      layout=self.layout,
      dtype=self.dtype,
      train=train,
      keeps_state=self.mixes_states,
      name='periods',
    )
    scanned = None if cache is None else cache['periods']
    x_BTD, (scanned, outputs, x_LBTD) = period(x_BTD, scanned, mask, info)
    if self.mixes_states:
      x_BTD = self._mixed(x_LBTD)
    # We average sums and weights over layers. The weight is the same in each
    # layer, so sum / weight becomes the mean loss.
    losses = jax.tree.map(lambda a_L: a_L.mean(axis=0), outputs.losses)
    new_cache = None
    if cache is not None:
      new_cache = {'prefix': tuple(prefix), 'periods': scanned}
    return x_BTD, new_cache, losses, outputs.metrics

  def _mixed(self, x_LBTD: Array) -> Array:
    """The mean over layers by weights that are learned, equal at the start."""
    init = nn.with_logical_partitioning(
      nn.initializers.zeros_init(), (axes.LAYERS,)
    )
    share_L = self.param('state_mix', init, x_LBTD.shape[:1], jnp.float32)
    weight_L = jax.nn.softmax(share_L).astype(self.dtype)
    return jnp.einsum('l,lbtd->btd', weight_L, x_LBTD)

  def scaled_block(self) -> Callable[..., Block]:
    """A function that makes a block with the factors of this stack."""
    output_scale = {
      'fan_in': 1.0,
      'depth': (2 * self.num_layers) ** -0.5,
      'zero': 0.0,
    }[self.output_init]
    return functools.partial(
      self.block,
      output_scale=output_scale,
      residual_scale=self.residual_scale,
      router_scale=self.router_scale,
    )

  def policy(self) -> Callable | None:
    """Which tensors of a block are kept for its backward pass; None for all."""
    return REMAT_POLICIES.get(self.remat)
