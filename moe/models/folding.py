"""The folding model: it predicts structures of proteins from their residues.

The trunk is a decoder that reads a chain as one attention block, so each
residue sees all others. A learned mean of the trunk's activations over its
layers gives a vector for each residue and for each pair of residues. Folding
blocks refine these vectors. Then AlphaFold 2's structure module places the
atoms. The model can read its own result again (recycling).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers import attention_maps, pairs
from moe.layers.attention import Attention
from moe.layers.linear import LayerNorm, Linear
from moe.layers.structure import Structure, StructureModule
from moe.modalities import ids, rigid, torsions
from moe.modalities.rigid import Rigid
from moe.models.decoder import DTYPES, Decoder
from moe.models.folding_block import FoldingBlock, stacked
from moe.types import Array, Batch, Outputs, TokenBatch

# Pairs of residues that are at least this far apart in the chain share two
# vectors, one for each direction.
MAX_RELATIVE = 32
# A limit for LONGEST_BLOCK that no chain reaches.
_ANY_LENGTH = 2**20
# (first edge, last edge, number of edges) of the bins of recycled distances,
# in Angstrom, as in ESMFold.
_RECYCLED_EDGES = (3.375, 21.375, 14)
DISTOGRAM_BINS, PLDDT_BINS, ERROR_BINS = 64, 50, 64


class Recycled(NamedTuple):
  """What a pass of the model gives to the next pass (recycling).

  Attributes:
    s: vectors of the residues, [B, I, D].
    pair: vectors of the pairs, [B, I, J, Z].
    cb: coordinates of the CB atoms, [B, I, 3], in Angstrom.
  """

  s: Array
  pair: Array
  cb: Array


class Folded(NamedTuple):
  """A predicted structure.

  Attributes:
    structure: frames, torsions and states after each layer of the structure
      module.
    atoms: coordinates [B, I, 14, 3] in Angstrom.
    groups: frames of the rigid groups, [B, I, 8].
    distogram: logits [B, I, J, 64] of binned distances.
    plddt: logits [B, I, 50] of the binned lDDT of each residue.
    errors: logits [B, I, J, 64] of binned aligned errors.
    recycled: what this pass gives to the next pass.
  """

  structure: Structure
  atoms: Array
  groups: Rigid
  distogram: Array
  plddt: Array
  errors: Array
  recycled: Recycled


def trunk_for_chains(trunk: Decoder, returns_maps: bool) -> Decoder:
  """Returns a trunk whose attention reads a row of any length as one block.

  Args:
    trunk: the trunk.
    returns_maps: whether it also returns the maps of its attention.
  """
  stack = trunk.stack(parent=None)
  options = {'longest_block': _ANY_LENGTH}
  if returns_maps:
    options['returns_maps'] = True
  attention = functools.partial(stack.block(parent=None).attention, **options)
  block = functools.partial(stack.block, attention=attention)
  return trunk.clone(stack=functools.partial(trunk.stack, block=block))


def token_batch(batch: Batch) -> TokenBatch:
  """Returns the trunk's input, which makes each chain one attention block."""
  valid_BI = batch['valid'].astype(jnp.int32)
  return TokenBatch(
    tokens=batch['tokens'],
    targets=jnp.zeros_like(batch['tokens']),
    loss_weights=jnp.zeros(valid_BI.shape, jnp.float32),
    segment_ids=valid_BI,
    positions=batch['numbers'],
    block_ids=valid_BI,
    modality=jnp.full_like(valid_BI, ids.PROTEIN),
  )


class Folder(nn.Module):
  """Folding blocks, structure module and heads: one pass over a chain.

  Attributes:
    block: makes a folding block.
    structure: makes the structure module.
    num_blocks: number of folding blocks.
    remat: see `Folding`.
    dtype: compute dtype of the blocks.
  """

  block: Callable[..., FoldingBlock]
  structure: Callable[..., StructureModule]
  num_blocks: int
  remat: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    s_BID: Array,
    pair_BIJZ: Array,
    batch: Batch,
    last: Recycled,
    train: bool,
  ) -> Folded:
    """Predicts the structure of each chain.

    Args:
      s_BID: vectors of the residues.
      pair_BIJZ: vectors of the pairs.
      batch: a batch of chains.
      last: what the previous pass found; zeros in the first pass.
      train: whether this is training.
    """
    D, Z = s_BID.shape[-1], pair_BIJZ.shape[-1]
    norm = lambda axis, name, dtype=self.dtype: LayerNorm(
      axis, dtype, name=name
    )
    s_BID += norm(axes.EMBED, 'recycled_s_norm')(last.s)
    pair_BIJZ += norm(axes.LATENT, 'recycled_pair_norm')(last.pair)
    apart = jnp.square(last.cb[:, :, None] - last.cb[:, None])
    edges = jnp.square(jnp.linspace(*_RECYCLED_EDGES, dtype=jnp.float32))
    bins = jnp.sum(
      jnp.sum(apart, axis=-1)[..., None] > edges, axis=-1, dtype=jnp.int32
    )
    pair_BIJZ += PairTable(
      _RECYCLED_EDGES[2] + 1, Z, self.dtype, name='recycled_distances'
    )(bins)
    valid_BI = batch['valid']
    s_BID, pair_BIJZ = stacked(
      self.block, self.num_blocks, self.remat == 'full', self.dtype, train
    )((s_BID, pair_BIJZ), valid_BI)[0]
    # Coordinates and confidence are float32, whatever the dtype of the blocks
    # is.
    s, pair = s_BID.astype(jnp.float32), pair_BIJZ.astype(jnp.float32)
    found = self.structure(name='structure')(s, pair, valid_BI)
    frames = rigid.Rigid(
      found.frames.rotation[-1], found.frames.translation[-1]
    )
    atoms, groups = torsions.all_atoms(
      batch['codes'], frames, found.torsions[-1]
    )
    state = norm(axes.EMBED, 'plddt_norm', jnp.float32)(found.states[-1])
    hidden = nn.relu(
      Linear((D,), (axes.EMBED, None), 'relu', name='plddt_hidden')(state)
    )
    head = lambda size, axis, name: Linear(
      (size,), (axis, None), 'zero', name=name
    )
    distances = head(DISTOGRAM_BINS, axes.LATENT, 'distogram')(pair)
    return Folded(
      found,
      atoms,
      groups,
      (distances + jnp.swapaxes(distances, 1, 2)) / 2,
      head(PLDDT_BINS, axes.EMBED, 'plddt')(hidden),
      head(ERROR_BINS, axes.LATENT, 'errors')(pair),
      Recycled(s_BID, pair_BIJZ, torsions.ideal_cb(atoms)),
    )


class PairTable(nn.Module):
  """A table with a learned vector for each integer from 0 to size - 1.

  Attributes:
    size: number of integers.
    width: length of a vector.
    dtype: dtype of the result.
  """

  size: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, index: Array) -> Array:
    """Returns the vectors [..., Z] of integers [...]."""
    init = nn.with_logical_partitioning(
      nn.initializers.normal(0.02), (None, axes.LATENT)
    )
    table = self.param('table', init, (self.size, self.width), jnp.float32)
    return table.astype(self.dtype)[index]


class Folding(nn.Module):
  """The model of a folding run.

  Attributes:
    trunk: the decoder that reads the residues.
    block: makes a folding block.
    structure: makes the structure module.
    num_blocks: number of folding blocks.
    width: D, the width of residues in folding blocks.
    pair_width: Z, the width of pairs.
    reads_attention: whether pairs also read the attention maps of all layers
      and heads of the trunk, through one linear layer. Kernels other than plain
      XLA compute no maps.
    remat: with 'full' the backward pass computes each folding block again; with
      'none' all activations are kept.
    dtype: compute dtype of the folding blocks; the structure is float32.
  """

  trunk: Decoder
  block: Callable[..., FoldingBlock]
  structure: Callable[..., StructureModule]
  num_blocks: int
  width: int
  pair_width: int
  reads_attention: bool = False
  remat: str = 'full'
  dtype: str = 'float32'

  def __post_init__(self):
    at_least = bounds.at_least
    at_least(1, 'NUM_FOLDING_BLOCKS', self.num_blocks, 'folding blocks')
    at_least(1, 'RESIDUE_WIDTH', self.width, 'the width of a residue')
    at_least(2, 'PAIR_WIDTH', self.pair_width, 'the width of a pair')
    bounds.one_of('FOLDING_REMAT', self.remat, ('none', 'full'))
    bounds.one_of('FOLDING_DTYPE', self.dtype, DTYPES)
    super().__post_init__()

  def check(self):
    """Raises ValueError if a size of a part is out of range."""
    self.trunk.anatomy()
    block = self.trunk.stack(parent=None).block(parent=None)
    attention = block.attention(parent=None)
    limit = attention.longest_block
    if limit:
      rule = 'must be 0: a folding model takes the length of the row instead.'
      raise bounds.OutOfRange('LONGEST_BLOCK', limit, rule)
    if self.reads_attention and not isinstance(attention, Attention):
      name = type(attention).__name__
      rule = "must be 'Attention' with READS_ATTENTION: only it returns maps."
      raise bounds.OutOfRange('ATTENTION', name, rule)
    if self.reads_attention and attention.kernel != 'xla':
      rule = "must be 'xla' with READS_ATTENTION: fused kernels make no maps."
      raise bounds.OutOfRange('ATTENTION_KERNEL', attention.kernel, rule)
    self.block(parent=None)
    self.structure(parent=None).attention(parent=None)

  @property
  def has_dropout(self) -> bool:
    """Whether folding blocks use dropout in training."""
    return self.block(parent=None).dropout_rate > 0

  def num_activations(self, length: int) -> int:
    """About how many numbers a pass over one chain holds in memory.

    Args:
      length: residues of the row.
    """
    point = self.structure(parent=None).attention(parent=None)
    points = point.num_heads * (3 * point.num_query_points + 2)
    # Factors and gates of triangle layers, or logits of heads, and distances
    # between points of the attention in the structure module.
    by_pair = max(16 * self.pair_width, 4 * 64) + points
    block = self.block(parent=None)
    heads = block.triangle_heads
    # Queries, keys, values and gates of triangle attention.
    by_pair += 4 * heads * block.triangle_head_dim
    rows = length // pairs.num_parts((1, length, length), max(1, heads))
    # The softmax holds the scores twice.
    by_pair += 2 * heads * rows
    # Maps exist before and after their correction. The blocks begin after that.
    return length**2 * max(by_pair, 2 * self._num_maps())

  def _num_maps(self) -> int:
    """Number of attention maps that pairs read: one for each layer and head."""
    if not self.reads_attention:
      return 0
    stack = self.trunk.stack(parent=None)
    attention = stack.block(parent=None).attention(parent=None)
    return stack.num_layers * attention.num_heads

  def setup(self):
    """Makes the submodules."""
    dtype, D, Z = jnp.dtype(self.dtype), self.width, self.pair_width
    self.state_norm = LayerNorm(axes.EMBED, dtype)
    self.state_in = Linear((D,), (axes.EMBED, None), dtype=dtype)
    self.pair_in = Linear((2, Z), (axes.EMBED, None, axes.LATENT), dtype=dtype)
    self.relative = PairTable(2 * MAX_RELATIVE + 1, Z, dtype)
    if self.reads_attention:
      self.maps_in = Linear((Z,), (None, axes.LATENT), dtype=dtype)
    self.folder = Folder(
      self.block, self.structure, self.num_blocks, self.remat, dtype
    )

  def __call__(self, batch: Batch) -> Folded:
    """Folds without recycling; `init` calls this to make all parameters."""
    s_BID, pair_BIJZ, _ = self.read(batch, train=False)
    return self.fold(s_BID, pair_BIJZ, batch, self.nothing(batch), train=False)

  def read(self, batch: Batch, train: bool) -> tuple[Array, Array, Outputs]:
    """Runs the trunk; returns (residues, pairs, outputs of the trunk)."""
    outputs = self.trunk(token_batch(batch), None, train)
    hidden = self.state_norm(outputs.hidden)
    both = self.pair_in(hidden)
    numbers = batch['numbers']
    apart = jnp.clip(
      numbers[:, None] - numbers[:, :, None], -MAX_RELATIVE, MAX_RELATIVE
    )
    pair_BIJZ = both[:, :, None, 0] + both[:, None, :, 1]
    pair_BIJZ += self.relative(apart + MAX_RELATIVE)
    if self.reads_attention:
      maps = attention_maps.corrected(outputs.maps, batch['valid'])
      pair_BIJZ += self.maps_in(maps)
    return self.state_in(hidden), pair_BIJZ, outputs

  def fold(
    self,
    s_BID: Array,
    pair_BIJZ: Array,
    batch: Batch,
    last: Recycled,
    train: bool,
  ) -> Folded:
    """Runs one pass of `Folder`; returns the predicted structures."""
    return self.folder(s_BID, pair_BIJZ, batch, last, train)

  def nothing(self, batch: Batch) -> Recycled:
    """Returns zeros, which the first pass reads: it has no previous pass."""
    B, T = batch['tokens'].shape
    dtype = jnp.dtype(self.dtype)
    return Recycled(
      jnp.zeros((B, T, self.width), dtype),
      jnp.zeros((B, T, T, self.pair_width), dtype),
      jnp.zeros((B, T, 3), jnp.float32),
    )
