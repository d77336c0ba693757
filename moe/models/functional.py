"""Models as pure functions, the only form that training and inference see."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from moe.modalities.ids import IdSpace
from moe.modalities.image import Autoencoder
from moe.models import stack
from moe.models.decoder import Decoder
from moe.models.folding import Folded, Folding, Recycled, trunk_for_chains
from moe.types import (
  Array,
  Batch,
  Cache,
  Extra,
  Layout,
  Outputs,
  PyTree,
  TokenBatch,
)

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]


@dataclasses.dataclass(frozen=True)
class Functional:
  """Pure functions of one language model.

  Attributes:
    module: the model.
    rules: logical axis -> mesh axes, for activations; parameters are placed by
      the logical axes that `init` returns.
  """

  module: Decoder
  rules: Rules = ()

  @property
  def layout(self) -> Layout:
    """Mesh axes by use."""
    return self.module.layout

  @property
  def extras(self) -> tuple[Extra, ...]:
    """The arrays that the model reads besides the fields of every batch."""
    return self.module.extras()

  @property
  def ids(self) -> IdSpace | None:
    """The ranges of ids; None if there is a single softmax over all ids."""
    return self.module.ids

  def init(
    self, key: Array, batch_shapes: TokenBatch
  ) -> tuple[PyTree, PyTree, PyTree]:
    """Makes parameters and state, and tells the parameters' logical axes.

    Args:
      key: random key.
      batch_shapes: a batch, or the shapes of its arrays.

    Returns:
      (params, state, logical_axes). logical_axes has the structure of params;
      each leaf is a tuple that has, for each dim, an axis name or None.
    """
    batch = jax.tree.map(
      lambda s: jax.numpy.zeros(s.shape, s.dtype), batch_shapes
    )
    with nn.logical_axis_rules(self.rules):
      variables = self.module.init({'params': key}, batch)
    return unboxed(variables)

  def apply(
    self,
    params: PyTree,
    state: PyTree,
    batch: TokenBatch,
    rngs: dict[str, Array] | None,
    train: bool,
    cache: Cache | None = None,
  ) -> Outputs:
    """Applies the model to a batch; see `Outputs`."""
    with nn.logical_axis_rules(self.rules):
      outputs, updates = self.module.apply(
        {'params': params, 'state': state},
        batch,
        cache,
        train,
        rngs=rngs,
        mutable=['state'],
      )
    return outputs._replace(state=updates.get('state', state))

  def after_each_period(
    self, params: PyTree, state: PyTree, batch: TokenBatch
  ) -> Array:
    """Hidden states of models that end after each period, [B, T, L, D]."""
    module = self.module
    mixing = dataclasses.replace(
      self,
      module=module.clone(
        stack=functools.partial(module.stack, mixes_states=True)
      ),
    )

    def hidden(mixed: PyTree) -> Array:
      given = {**params, 'stack': mixed}
      return mixing.apply(given, state, batch, None, False).hidden

    num_periods = module.anatomy().num_periods
    return stack.after_each_period(hidden, params['stack'], num_periods)

  def update(self, state: PyTree) -> PyTree:
    """State after a step: routers update it from the statistics of the step."""
    return self.module.update_state(state) if state else state

  def head(
    self, params: PyTree, hidden: Array, section: str | None = None
  ) -> Array:
    """Float32 logits [..., V] of hidden states [..., D].

    Args:
      params: parameters of the model.
      hidden: [..., D].
      section: name of a range of ids. Then only its ids get logits, and V is
        their number. None for all ids.
    """
    return self.head_of(params, section)(hidden)

  def head_of(
    self, params: PyTree, section: str | None = None
  ) -> Callable[[Array], Array]:
    """The function `head` of hidden states alone.

    It slices the table once, however often it is called.
    """
    return self.module.head_of(params, section)

  def restrict(self, logits: Array, targets: Array) -> Array:
    """Excludes ids from a softmax of the logits, see `Decoder.restrict`."""
    return self.module.restrict(logits, targets)

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Shapes of `Cache.layers` for a number of rows and of entries per row."""
    return self.module.cache_shapes(batch_size, length)


@dataclasses.dataclass(frozen=True)
class PictureFunctional:
  """Pure functions of an image tokenizer.

  Attributes:
    module: the autoencoder.
  """

  module: Autoencoder

  def init(self, key: Array, pixels: Array) -> tuple[PyTree, PyTree, PyTree]:
    """Makes (params, state, logical axes), in the form of `Functional.init`.

    Args:
      key: random key.
      pixels: [B, Y, X, 3], or the shape of such an array.
    """
    pixels = jax.numpy.zeros(pixels.shape, jax.numpy.float32)
    return unboxed(self.module.init({'params': key}, pixels))

  def reconstruct(self, params: PyTree, pixels: Array) -> tuple[Array, Array]:
    """Encodes and decodes pixels, see `Autoencoder.__call__`."""
    return self.module.apply({'params': params}, pixels)

  def encode(self, params: PyTree, pixels: Array) -> Array:
    """Encodes pixels with values from 0 to 1 into codes int32 [B, Y', X']."""
    return self.module.apply({'params': params}, pixels, method='encode')

  def decode(self, params: PyTree, codes: Array) -> Array:
    """Decodes codes into pixels [B, Y, X, 3] with values from 0 to 1."""
    return self.module.apply({'params': params}, codes, method='decode')


@dataclasses.dataclass(frozen=True)
class FoldingFunctional:
  """Pure functions of a model that folds proteins.

  Attributes:
    module: the model.
    rules: see `Functional`.
  """

  module: Folding
  rules: Rules = ()

  def init(self, key: Array, shapes: Batch) -> tuple[PyTree, PyTree, PyTree]:
    """Makes (params, state, logical axes), in the form of `Functional.init`.

    Args:
      key: random key.
      shapes: a batch of chains, or the shapes of its arrays.
    """
    batch = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)
    with nn.logical_axis_rules(self.rules):
      return unboxed(self.module.init({'params': key}, batch))

  def read(
    self,
    params: PyTree,
    state: PyTree,
    batch: Batch,
    rngs: dict[str, Array] | None,
    train: bool,
  ) -> tuple[Array, Array, Outputs]:
    """Runs the trunk; returns (residues, pairs, outputs with the new state)."""
    with nn.logical_axis_rules(self.rules):
      (s, pair, outputs), updates = self.module.apply(
        {'params': params, 'state': state},
        batch,
        train,
        rngs=rngs,
        mutable=['state'],
        method='read',
      )
    return s, pair, outputs._replace(state=updates.get('state', state))

  def fold(
    self,
    params: PyTree,
    given: tuple[Array, Array, Batch],
    last: Recycled | None,
    rngs: dict[str, Array] | None,
    train: bool,
  ) -> Folded:
    """Runs the folding blocks and the structure module once.

    Args:
      params: parameters of the model.
      given: (residues, pairs, batch).
      last: what the previous pass found; None in the first pass.
      rngs: random keys by use.
      train: whether this is training.
    """
    last = last or self.module.nothing(given[2])
    with nn.logical_axis_rules(self.rules):
      return self.module.apply(
        {'params': params}, *given, last, train, rngs=rngs, method='fold'
      )

  def update(self, state: PyTree) -> PyTree:
    """State after a step; each router acts on the statistics of the step."""
    trunk = self.module.trunk
    return {'trunk': trunk.update_state(state['trunk'])} if state else state


def unboxed(variables: PyTree) -> tuple[PyTree, PyTree, PyTree]:
  """Splits the variables of a module into (params, state, logical axes)."""
  params, state = variables['params'], variables.get('state', {})
  # A spec has the axis names that the module gave, which are logical axes.
  specs = nn.get_partition_spec(params)
  is_spec = lambda s: isinstance(s, jax.sharding.PartitionSpec)
  logical_axes = jax.tree.map(
    # The spec of an array without axis names is empty: no dim is divided.
    lambda s, a: tuple(s) or (None,) * nn.meta.unbox(a).ndim,
    specs,
    params,
    is_leaf=is_spec,
  )
  return nn.meta.unbox(params), nn.meta.unbox(state), logical_axes


def make_functional(
  module: Decoder, rules: Rules, layout: Layout
) -> Functional:
  """Makes a language model's functions; MoE layers use the axes of `layout`."""
  return Functional(module.clone(layout=layout), rules)


def make_folding_functional(
  module: Folding, rules: Rules, layout: Layout
) -> FoldingFunctional:
  """Makes a folding model's functions; MoE layers use the axes of `layout`."""
  trunk = trunk_for_chains(module.trunk, module.reads_attention)
  trunk = trunk.clone(layout=layout)
  return FoldingFunctional(module.clone(trunk=trunk), rules)
