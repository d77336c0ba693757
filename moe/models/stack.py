"""The tower of blocks: an unscanned dense prefix, then a scanned period."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.attention import Description
from moe.layers.moe_layer import LayerOutputs, TokenInfo
from moe.models.anatomy import LayerAnatomy
from moe.models.block import Block
from moe.types import Array, Layout, Pair, PyTree

# Policies by the names of the tensors that they keep of each block; all else of
# a period is computed again in the backward pass. A name is given to a tensor
# where it is made, by `checkpoint_name`.
REMAT_NAMES = {
  # Attention's result before its last product: its kernel runs once.
  'attention': ('attention_out',),
  # What came over the network, so that no exchange between devices is repeated:
  # sums over parts of heads, and rows before and after the experts.
  'exchange': ('attention_residual', 'moe_packed', 'moe_out'),
  # Both: the cheapest backward pass that does not keep hidden layers.
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


class Period(nn.Module):
  """The blocks that repeat, all dense or the last one sparse.

  Attributes:
    block: makes a block.
    kinds: whether each block is sparse.
    layout: mesh axes by use.
    dtype: compute dtype.
    train: whether this is training.
  """

  block: Callable[..., Block]
  kinds: tuple[bool, ...]
  layout: Layout
  dtype: jnp.dtype
  train: bool

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    cache: tuple | None,
    description: Description,
    info: TokenInfo,
  ) -> tuple[Array, tuple]:
    """One period, in the form `nn.scan` wants: (carry, xs, broadcast...)."""
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
        x_BTD, description, info, layer_cache, self.train
      )
      caches.append(layer_cache)
    return x_BTD, (None if cache is None else tuple(caches), outputs)


class Stack(nn.Module):
  """Prefix of dense blocks, then repeated periods of `moe_every` blocks.

  Attributes:
    block: makes a block.
    num_layers: blocks in all.
    moe_every: the last of so many blocks is sparse; 0 for a dense stack.
    num_dense_prefix: dense blocks before the first period.
    remat: 'none', or a name of `REMAT_POLICIES`; of the prefix's blocks too.
    unroll: periods that one pass of the loop runs; all of them leave no loop,
      which a compiler takes longer for and counts in full.
    layout: mesh axes by use.
    dtype: compute dtype.
  """

  block: Callable[..., Block]
  num_layers: int
  moe_every: int = 1
  num_dense_prefix: int = 0
  remat: str = 'none'
  unroll: int = 1
  layout: Layout = Layout()
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    at_least = bounds.at_least
    at_least(1, 'NUM_LAYERS', self.num_layers, 'blocks of the model')
    at_least(0, 'NUM_DENSE_PREFIX', self.num_dense_prefix, 'of these, dense')
    at_least(0, 'MOE_EVERY', self.moe_every, '0 makes every block dense')
    at_least(1, 'UNROLL', self.unroll, 'periods that one pass runs')
    bounds.one_of('REMAT', self.remat, ('none', *REMAT_POLICIES))
    super().__post_init__()

  def num_periods(self) -> int:
    """Scanned periods.

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
    """Whether each block of a period is sparse; none without periods."""
    if not self.num_periods():
      return ()
    return (False,) * (self.moe_every - 1) + (self.moe_every > 0,)

  def anatomy(self) -> tuple[tuple[LayerAnatomy, ...], ...]:
    """Blocks of (the prefix, one period).

    Raises:
      ValueError: if the layers do not divide into periods.
    """
    # parent=None: inert descriptions to read sizes from, not submodules.
    block = functools.partial(self.block, parent=None)
    prefix = range(self.num_dense_prefix)
    return (
      tuple(block().anatomy() for _ in prefix),
      tuple(block(is_sparse=kind).anatomy() for kind in self.kinds()),
    )

  def update_state(self, state: PyTree) -> PyTree:
    """State after a step, of the periods: the prefix carries none."""
    block = self.block(parent=None)
    periods = state['periods']
    return {
      'periods': {name: block.update_state(periods[name]) for name in periods}
    }

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Shapes of what the attention layers keep, for `Cache.layers`."""
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
    description: Description,
    info: TokenInfo,
    cache: PyTree | None,
    train: bool,
  ) -> tuple[Array, PyTree | None, dict[str, Pair], dict[str, Pair]]:
    """Returns ([B, T, D], cache, losses averaged, metrics by sparse layer)."""
    policy = self._policy()
    prefix = []
    for i in range(self.num_dense_prefix):
      block = self.block(
        layout=self.layout, dtype=self.dtype, name=f'prefix_{i}'
      )
      layer_cache = None if cache is None else cache['prefix'][i]
      run = lambda block, *inputs: block(*inputs, train)
      if policy:
        run = nn.remat(run, policy=policy)
      x_BTD, layer_cache, _ = run(block, x_BTD, description, info, layer_cache)
      prefix.append(layer_cache)
    if not self.num_periods():
      return x_BTD, cache and {'prefix': tuple(prefix), 'periods': ()}, {}, {}
    # In a loop's body alone no compiler can find what is done twice.
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
      block=self.block,
      kinds=self.kinds(),
      layout=self.layout,
      dtype=self.dtype,
      train=train,
      name='periods',
    )
    scanned = None if cache is None else cache['periods']
    x_BTD, (scanned, outputs) = period(x_BTD, scanned, description, info)
    # A term's weight is the same in each layer: the mean leaves it as it is.
    losses = jax.tree.map(lambda a_L: a_L.mean(axis=0), outputs.losses)
    new_cache = None
    if cache is not None:
      new_cache = {'prefix': tuple(prefix), 'periods': scanned}
    return x_BTD, new_cache, losses, outputs.metrics

  def _policy(self):
    """What of a block is kept for its backward pass; None for all of it."""
    return REMAT_POLICIES.get(self.remat)
