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

# Rematerialisation policy -> names of the tensors of each block that are kept.
# The backward pass computes all other tensors again. `checkpoint_name` names a
# tensor in the code that computes it.
REMAT_NAMES = {
  # The output of the attention kernel, so that the backward pass does not run
  # the kernel again.
  'attention': ('attention_out',),
  # Results of communication that the backward pass then does not repeat: sums
  # over divided heads, and rows before and after the experts.
  'exchange': ('attention_residual', 'moe_packed', 'moe_out'),
  # The tensors of both policies above. Hidden layers of feed-forward layers are
  # still recomputed, since they are large.
  'attention_exchange': (
    'attention_out',
    'attention_residual',
    'moe_packed',
    'moe_out',
  ),
}
REMAT_POLICIES = {
  # The backward pass computes everything inside a period, or inside a block of
  # the prefix, again.
  'full': jax.checkpoint_policies.nothing_saveable,
  # Results of products without batch dims are kept. The products of attention
  # (scores, and weighted values) and of experts have batch dims.
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  **{
    policy: jax.checkpoint_policies.save_only_these_names(*names)
    for policy, names in REMAT_NAMES.items()
  },
}
# A logit of a period that has no share in a mean of periods.
_NO_SHARE = -1e9
# Choices for the initial values of the last matrix of each residual branch.
OUTPUT_INITS = ('fan_in', 'depth', 'zero')


class Period(nn.Module):
  """The group of blocks that repeats. Only the last of them may be sparse.

  Attributes:
    block: makes a block.
    kinds: for each block, whether it is sparse.
    layout: mesh axes by use.
    dtype: compute dtype.
    train: whether this is training.
    keeps_state: whether the activations after the period are also returned as
      an output of the scan.
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
    """Runs a period; `nn.scan` fixes the order of arguments and results."""
    kept = []
    outputs = LayerOutputs({}, {})
    for i, is_sparse in enumerate(self.kinds):
      block = self.block(
        is_sparse=is_sparse,
        layout=self.layout,
        dtype=self.dtype,
        name=f'block_{i}',
      )
      layer_cache = None if cache is None else cache[i]
      x_BTD, of_layer, outputs = block(
        x_BTD, mask, info, layer_cache, self.train
      )
      kept.append(of_layer)
    state_BTD = x_BTD if self.keeps_state else None
    return x_BTD, (tuple(kept), outputs, state_BTD)


class Stack(nn.Module):
  """Prefix of dense blocks, then repeated periods of `moe_every` blocks.

  Attributes:
    block: makes a block.
    num_layers: number of all blocks.
    moe_every: number of blocks of a period; the last of them is sparse. 0 for a
      dense stack, whose periods have one block.
    num_dense_prefix: number of dense blocks before the first period.
    remat: 'none', or a name of `REMAT_POLICIES`; blocks of the prefix use it,
      too.
    output_init: initial values of the last matrix of each residual branch:
      'fan_in' as for all other matrices; 'depth' divides these by sqrt(2 *
      num_layers) (Radford et al. 2019, GPT-2, section 2.3); 'zero'.
    residual_scale: factor of the output of each residual branch.
    router_scale: factor of the router's initial values.
    unroll: number of periods per iteration of the loop. If one iteration has
      all periods, there is no loop. Then compiling takes longer, but the
      compiler counts the FLOPs of all periods.
    mixes_states: whether the stack returns a learned mean of the activations
      after each period, instead of the activations after the last one.
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
    """Returns (blocks of the prefix, blocks of one period).

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
    """Returns the state after a step; only periods have a state."""
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
    """Runs all blocks.

    Returns:
      ([B, T, D], what attention keeps, mean losses, metrics by sparse layer).
      Attention keeps the updated cache. Without a cache, it is the attention
      maps [L, B, N, T, S], if the attention layers return them, or None.
    """
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
      x_BTD, kept, _ = run(block, x_BTD, mask, info, layer_cache)
      prefix.append(kept)
    if not self.num_periods():
      return x_BTD, _joined(cache, prefix, ()), {}, {}
    # If recomputation and forward pass are in the same part of the program, the
    # compiler may merge them and keep all tensors. `prevent_cse` prevents this.
    # If each iteration of the loop runs one period, recomputation and forward
    # pass are in separate loops, so merging is impossible.
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
    x_BTD, (kept, outputs, x_LBTD) = period(x_BTD, scanned, mask, info)
    if self.mixes_states:
      x_BTD = self._mixed(x_LBTD)
    # Sums and weights are averaged over layers. The weight is the same in each
    # layer, so sum / weight is the mean loss.
    losses = jax.tree.map(lambda a_L: a_L.mean(axis=0), outputs.losses)
    return x_BTD, _joined(cache, prefix, kept), losses, outputs.metrics

  def _mixed(self, x_LBTD: Array) -> Array:
    """The mean over periods with learned weights, which are equal at first."""
    init = nn.with_logical_partitioning(
      nn.initializers.zeros_init(), (axes.LAYERS,)
    )
    share_L = self.param('state_mix', init, x_LBTD.shape[:1], jnp.float32)
    weight_L = jax.nn.softmax(share_L).astype(self.dtype)
    return jnp.einsum('l,lbtd->btd', weight_L, x_LBTD)

  def scaled_block(self) -> Callable[..., Block]:
    """Returns a function that makes a block with the factors of this stack."""
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
    """The rule that selects tensors to keep for the backward pass, or None."""
    return REMAT_POLICIES.get(self.remat)


def after_each_period(
  hidden: Callable[[PyTree], Array], params: PyTree, num_periods: int
) -> Array:
  """Activations of a model that ends after each period, float32 [B, T, L, D].

  Args:
    hidden: parameters of the stack -> activations [B, T, D] of the model. The
      stack has `mixes_states`; for each period, all weight of its mean is on
      this period.
    params: parameters of the stack, with these weights or without them.
    num_periods: number of periods. For 0, L is 1, the end of the stack.
  """
  L = max(1, num_periods)
  mixes = jnp.where(jnp.eye(L, dtype=bool), 0.0, _NO_SHARE)
  found = [hidden({**params, 'state_mix': mix_L}) for mix_L in mixes]
  return jnp.stack(found, axis=2).astype(jnp.float32)


def _joined(
  cache: PyTree | None, prefix: list[PyTree], periods: tuple[PyTree, ...]
) -> PyTree | None:
  """Joins what the attention layers keep, see `Stack.__call__`.

  Args:
    cache: the old cache.
    prefix: what each layer of the prefix keeps.
    periods: what each layer of a period keeps; arrays have a leading dim, with
      an entry for each period.
  """
  if cache is not None:
    return {'prefix': tuple(prefix), 'periods': periods}
  maps = [kept[None] for kept in prefix if kept is not None]
  if periods and periods[0] is not None:
    stacked = jnp.stack(periods, axis=1)
    maps.append(stacked.reshape(-1, *stacked.shape[2:]))
  return jnp.concatenate(maps) if maps else None
