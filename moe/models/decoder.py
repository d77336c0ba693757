"""The decoder-only transformer."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from moe import axes, bounds
from moe.layers import embedding
from moe.layers.attention import mask_spec
from moe.layers.moe_layer import TokenInfo
from moe.layers.norm import RMSNorm
from moe.modalities import ids as ids_lib
from moe.modalities import image
from moe.models.ahead import Ahead
from moe.models.anatomy import Anatomy
from moe.models.block import Block
from moe.models.parametrisation import CompleteP
from moe.models.stack import Stack
from moe.types import (
  Array,
  Cache,
  Extra,
  Layout,
  Outputs,
  PyTree,
  TokenBatch,
  following,
)

DTYPES = ('bfloat16', 'float16', 'float32')
# The logit of an id that is excluded from a softmax. It is finite, so sums with
# it stay finite.
_BARRED = -1e9


class Decoder(nn.Module):
  """Embedding, a stack of blocks and a last norm; the loss applies the head.

  Attributes:
    stack: makes the stack of blocks.
    vocab_size: V.
    d_model: D.
    tie_embeddings: whether the head uses the embedding table. Hugging Face:
      tie_word_embeddings.
    extra_tables: (name, size) of further integers of each token, such as the
      row and the column of an image code. The integers are from 0 to size - 1;
      tokens of text have 0. For each integer, the model adds a learned vector
      to the token's embedding.
    rotary_table: name of the extra table whose integers are also the positions
      for rotary embedding, except for tokens with 0. Two sequences in one
      document then have the same positions, and a token of one sees its
      counterpart in the other at distance 0. None for the places in the
      document.
    ranges: (name, size) of each range of ids beside text, see
      `moe.modalities.ids`. Text and each of these ranges then have a softmax of
      their own. () for one softmax over all ids.
    code_levels: number of levels of each channel of an image code. The model
      then adds a linear map of the code's quantised values to the code's
      embedding, so that similar codes have similar vectors. () adds nothing.
    patch_values: number of pixel values in the patch of a token, for a model
      that reads pictures as patches instead of codes; 0 if it reads codes.
    embedding_scale: factor of embeddings; None for the square root of D. Models
      in Hugging Face's formats use 1.
    norm_epsilon: epsilon of the last norm. Hugging Face: rms_norm_eps.
    layout: mesh axes by use.
    dtype: name of the compute dtype, such as 'bfloat16'.
    parametrisation: how initial values and learning rates depend on width and
      depth; None if they do not.
    predicts_ahead: whether training has one more block, which predicts the
      token after the next one.
  """

  stack: Callable[..., Stack]
  vocab_size: int
  d_model: int
  tie_embeddings: bool = True
  extra_tables: Sequence[tuple[str, int]] = ()
  rotary_table: str | None = None
  ranges: Sequence[tuple[str, int]] = ()
  code_levels: Sequence[int] = ()
  patch_values: int = 0
  embedding_scale: float | None = None
  norm_epsilon: float = 1e-6
  layout: Layout = Layout()
  dtype: str = 'float32'
  parametrisation: CompleteP | None = None
  predicts_ahead: bool = False

  def __post_init__(self):
    bounds.one_of('DTYPE', self.dtype, DTYPES)
    bounds.within(
      'norm_epsilon', self.norm_epsilon, 'keeps roots above 0', above=0
    )
    if self.embedding_scale is not None:
      scale = 'factor of embeddings'
      bounds.within('embedding_scale', self.embedding_scale, scale, above=0)
    bounds.at_least(1, 'D_MODEL', self.d_model, 'the width of the model')
    bounds.at_least(
      1, 'VOCAB_SIZE', self.vocab_size, 'entries of the vocabulary'
    )
    if self.ranges:
      self._check_ranges()
    what = 'pixel values of a patch; 0 for none'
    bounds.at_least(0, 'PATCH_VALUES', self.patch_values, what)
    for name, size in self.extra_tables:
      what = f'the values of {name} that have a vector'
      bounds.at_least(1, f'EXTRA_TABLES: {name}', size, what)
    if self.rotary_table is not None:
      names = [name for name, _ in self.extra_tables]
      bounds.one_of('rotary_table', self.rotary_table, names)
    super().__post_init__()

  def _check_ranges(self) -> None:
    least = ids_lib.of_ranges(ids_lib.UNK + 1, dict(self.ranges)).size
    what = 'ids of text, with the other ranges'
    bounds.at_least(least, 'VOCAB_SIZE', self.vocab_size, what)
    num_codes = dict(self.ranges).get('image', 0)
    if self.code_levels and image.num_codes(self.code_levels) != num_codes:
      raise ValueError(
        f'CODE_LEVELS={tuple(self.code_levels)} must have the product'
        f' {num_codes}, the ids of the image range: take the LEVELS of the'
        ' tokenizer.'
      )

  @property
  def ids(self) -> ids_lib.IdSpace | None:
    """The ranges of ids; None if there is a single softmax over all ids."""
    if not self.ranges:
      return None
    others = dict(self.ranges)
    room = ids_lib.text_room(self.vocab_size, others)
    return ids_lib.of_ranges(room, others)

  def anatomy(self) -> Anatomy:
    """The sizes of this model.

    Raises:
      ValueError: for the first size or choice of a part that is out of range.
    """
    stack = self.stack(parent=None)
    prefix, period = stack.anatomy()
    return Anatomy(
      d_model=self.d_model,
      vocab_size=self.vocab_size,
      is_tied=self.tie_embeddings,
      dtype=self.dtype,
      remat=stack.remat,
      prefix=prefix,
      period=period,
      num_periods=stack.num_periods(),
      predicts_ahead=self.predicts_ahead,
    )

  @property
  def longest_block(self) -> int:
    """Tokens of the longest block that the model reads; 0 for causal data."""
    block = self.stack(parent=None).block(parent=None)
    return block.attention(parent=None).longest_block

  def only_block(self) -> tuple[Block, int]:
    """(the block that the model repeats, outside of the model, their number).

    Raises:
      ValueError: if the model has several kinds of blocks.
    """
    stack = self.stack(parent=None)
    if stack.num_dense_prefix or len(stack.kinds()) != 1:
      raise ValueError(
        'The blocks of the model must all be equal here: set'
        ' NUM_DENSE_PREFIX=0 and MOE_EVERY=1.'
      )
    block = stack.scaled_block()(
      is_sparse=stack.kinds()[0], dtype=jnp.dtype(self.dtype), parent=None
    )
    return block, stack.num_layers

  def extras(self) -> tuple[Extra, ...]:
    """The arrays that the model reads besides the fields of every batch."""
    found = tuple(Extra(name) for name, _ in self.extra_tables)
    if self.patch_values:
      found += (Extra(ids_lib.PATCHES, (self.patch_values,), 'uint8'),)
    return found

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Shapes of `Cache.layers` for a number of rows and of entries per row."""
    stack = self.stack(parent=None, dtype=jnp.dtype(self.dtype))
    return stack.cache_shapes(batch_size, length)

  def update_state(self, state: PyTree) -> PyTree:
    """State after a step: routers update it from the statistics of the step.

    Args:
      state: state of the model; not empty.
    """
    return {'stack': self.stack(parent=None).update_state(state['stack'])}

  @nn.compact
  def __call__(
    self, batch: TokenBatch, cache: Cache | None = None, train: bool = False
  ) -> Outputs:
    """Returns the hidden states of a batch, with the other `Outputs`."""
    dtype = jnp.dtype(self.dtype)
    embed = embedding.Embedding(
      self.vocab_size,
      self.d_model,
      self.embedding_scale,
      dtype,
      name='embedding',
    )
    x_BTD = embed(batch.tokens)
    for name, size in self.extra_tables:
      table = embedding.ExtraEmbedding(
        size, self.d_model, dtype, name=f'{name}_embedding'
      )
      x_BTD += table(batch.extras[name])
    if self.code_levels:
      x_BTD += self._code_vectors(batch.tokens, dtype)
    if self.patch_values:
      x_BTD += embedding.Patches(self.d_model, dtype, name='patches')(
        batch.extras[ids_lib.PATCHES]
      )
    x_BTD = nn.with_logical_constraint(x_BTD, (axes.BATCH, axes.LENGTH, None))
    mask = mask_spec(batch, cache)
    if self.rotary_table:
      place_BT = batch.extras[self.rotary_table].astype(jnp.int32)
      positions_BT = jnp.where(place_BT > 0, place_BT, batch.positions)
      mask = mask._replace(positions_BT=positions_BT)
    info = TokenInfo(batch.tokens, batch.modality, batch.segment_ids > 0)
    stack = self._stack(layout=self.layout, dtype=dtype, name='stack')
    x_BTD, kept, losses, metrics = stack(
      x_BTD, mask, info, None if cache is None else cache.layers, train
    )
    hidden = RMSNorm(axes.EMBED, self.norm_epsilon, dtype, name='last_norm')(
      x_BTD
    )
    ahead = None
    if self.predicts_ahead and (train or self.is_initializing()):
      ahead = Ahead(
        stack.scaled_block(),
        stack.moe_every > 0,
        stack.policy(),
        self.layout,
        dtype,
        name='ahead',
      )(x_BTD, embed(following(batch.tokens)), mask, info, train)
    if not self.tie_embeddings:
      embedding.OutputHead(self.vocab_size, self.d_model, name='output')()
    if cache is None:
      return Outputs(hidden, {}, None, losses, metrics, ahead, kept)
    cache = Cache(
      mask.key_segments_BS,
      mask.key_blocks_BS,
      cache.index + batch.tokens.shape[1],
      kept,
    )
    return Outputs(hidden, {}, cache, losses, metrics, ahead)

  def _stack(self, **options: PyTree) -> Stack:
    """Makes the stack, with the factors of the parametrisation."""
    scales = self.parametrisation
    if scales:
      options['router_scale'] = scales.router_scale(self.d_model)
      num_layers = self.stack(parent=None).num_layers
      options['residual_scale'] = scales.residual_scale(num_layers)
    return self.stack(**options)

  def _code_vectors(self, tokens_BT: Array, dtype: jnp.dtype) -> Array:
    """Maps the values of image codes to [B, T, D]; other tokens have zeros."""
    begin, size = self.ids.begin('image'), self.ids.image
    is_code_BT = (tokens_BT >= begin) & (tokens_BT < begin + size)
    codes_BT = jnp.where(is_code_BT, tokens_BT - begin, 0)
    values_BTQ = image.values_of(codes_BT, self.code_levels)
    # The values are about 1 in size, like the elements of token embeddings.
    x_BTD = nn.Dense(
      self.d_model,
      use_bias=False,
      dtype=dtype,
      kernel_init=nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), (None, axes.EMBED)
      ),
      name='code_values',
    )(values_BTQ.astype(dtype))
    return jnp.where(is_code_BT[..., None], x_BTD, 0)

  def restrict(self, logits: Array, targets: Array) -> Array:
    """Sets the logits of ids that cannot be the target to `_BARRED`.

    These are padding ids and ids outside the target's range.

    Args:
      logits: float32 [..., V].
      targets: int32 [...].
    """
    if not self.ranges:
      return logits
    number_V = self.ids.range_of(np.arange(self.vocab_size))
    known_V = np.ones(self.vocab_size, bool)
    known_V[self.ids.unknown(np.arange(self.vocab_size))] = False
    competes = number_V == self.ids.range_of(targets)[..., None]
    return jnp.where(competes & known_V, logits, _BARRED)

  def head_of(
    self, params: PyTree, section: str | None = None
  ) -> Callable[[Array], Array]:
    """The function from hidden states [..., D] to float32 logits [..., V].

    Args:
      params: parameters of the model.
      section: name of one of the `ranges`. Then only its ids get logits, and V
        is their number. None for all ids.
    """
    name = 'embedding' if self.tie_embeddings else 'output'
    table_VD = params[name]['table']
    if section:
      begin = self.ids.begin(section)
      table_VD = table_VD[begin : begin + self.ids.sizes[section]]

    def logits(hidden: Array) -> Array:
      if self.parametrisation:
        scale = self.parametrisation.logits_scale(self.d_model)
        hidden = hidden * jnp.asarray(scale, hidden.dtype)
      return embedding.logits(hidden, table_VD)

    return logits
