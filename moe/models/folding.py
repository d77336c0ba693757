"""From residues to a structure: a sparse trunk, folding blocks, a structure.

The trunk is a decoder that reads a chain as one block, so each residue sees
all. A learned mix of the states of its layers gives residues and pairs; folding
blocks improve them, and AlphaFold 2's structure module places the atoms. The
result can be read again (recycling).
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from moe import axes, bounds
from moe.layers.linear import LayerNorm, Linear
from moe.layers.structure import Structure, StructureModule
from moe.modalities import ids, rigid, torsions
from moe.modalities.rigid import Rigid
from moe.models.decoder import DTYPES, Decoder
from moe.models.folding_block import FoldingBlock, stacked
from moe.types import Array, Batch, Outputs, TokenBatch

# Residues further apart than this share one vector of relative positions.
MAX_RELATIVE = 32
# Bins of the recycled distances in Angstrom, as in ESMFold.
_RECYCLED_EDGES = (3.375, 21.375, 14)
DISTOGRAM_BINS, PLDDT_BINS, ERROR_BINS = 64, 50, 64


class Recycled(NamedTuple):
  """What a pass tells the next one.

  Attributes:
    s: [B, I, D].
    pair: [B, I, J, Z].
    cb: [B, I, 3], places of CB atoms in Angstrom.
  """

  s: Array
  pair: Array
  cb: Array


class Folded(NamedTuple):
  """A predicted structure.

  Attributes:
    structure: frames, torsions and states of each layer.
    atoms: [B, I, 14, 3] in Angstrom.
    groups: [B, I, 8], frames of the rigid groups.
    distogram: logits [B, I, J, 64].
    plddt: logits [B, I, 50].
    errors: logits [B, I, J, 64] of aligned errors.
    recycled: for the next pass.
  """

  structure: Structure
  atoms: Array
  groups: Rigid
  distogram: Array
  plddt: Array
  errors: Array
  recycled: Recycled


def token_batch(batch: Batch) -> TokenBatch:
  """What the trunk reads of a batch; the tokens of a chain see each other."""
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
    num_blocks: folding blocks.
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
    """The structure of each chain.

    Args:
      s_BID: residues.
      pair_BIJZ: pairs.
      batch: a batch of chains.
      last: what the pass before found; zeros before the first pass.
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
    # Coordinates and confidence are float32, whatever the blocks compute in.
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
  """A learned vector for each of a few integers.

  Attributes:
    size: how many integers.
    width: of a vector.
    dtype: of the result.
  """

  size: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, index: Array) -> Array:
    """Vectors [..., Z] of integers [...]."""
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
    num_blocks: folding blocks.
    width: D of the residues in folding blocks.
    pair_width: Z.
    remat: 'full' computes each folding block again in the backward pass, 'none'
      keeps everything.
    dtype: compute dtype of the folding blocks; the structure is float32.
  """

  trunk: Decoder
  block: Callable[..., FoldingBlock]
  structure: Callable[..., StructureModule]
  num_blocks: int
  width: int
  pair_width: int
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
    """Raises ValueError if a number of a part is out of range."""
    self.trunk.anatomy()
    self.block(parent=None)
    self.structure(parent=None).attention(parent=None)

  @property
  def has_dropout(self) -> bool:
    """Whether training drops values in folding blocks."""
    return self.block(parent=None).dropout_rate > 0

  @property
  def numbers_per_pair(self) -> int:
    """Numbers that a pass holds for each pair of residues, about."""
    heads = self.structure(parent=None).attention(parent=None)
    points = heads.num_heads * (3 * heads.num_query_points + 2)
    # Factors and gates of triangles, logits of three heads, point distances.
    return 16 * self.pair_width + 4 * 64 + points

  def setup(self):
    """Makes all parts."""
    dtype, D, Z = jnp.dtype(self.dtype), self.width, self.pair_width
    self.state_norm = LayerNorm(axes.EMBED, dtype)
    self.state_in = Linear((D,), (axes.EMBED, None), dtype=dtype)
    self.pair_in = Linear((2, Z), (axes.EMBED, None, axes.LATENT), dtype=dtype)
    self.relative = PairTable(2 * MAX_RELATIVE + 1, Z, dtype)
    self.folder = Folder(
      self.block, self.structure, self.num_blocks, self.remat, dtype
    )

  def __call__(self, batch: Batch) -> Folded:
    """One pass over a batch without recycling: it makes all parameters."""
    s_BID, pair_BIJZ, _ = self.read(batch, train=False)
    return self.fold(s_BID, pair_BIJZ, batch, self.nothing(batch), train=False)

  def read(self, batch: Batch, train: bool) -> tuple[Array, Array, Outputs]:
    """(residues [B, I, D], pairs [B, I, J, Z], outputs of the trunk)."""
    outputs = self.trunk(token_batch(batch), None, train)
    hidden = self.state_norm(outputs.hidden)
    both = self.pair_in(hidden)
    numbers = batch['numbers']
    apart = jnp.clip(
      numbers[:, None] - numbers[:, :, None], -MAX_RELATIVE, MAX_RELATIVE
    )
    pair_BIJZ = both[:, :, None, 0] + both[:, None, :, 1]
    pair_BIJZ += self.relative(apart + MAX_RELATIVE)
    return self.state_in(hidden), pair_BIJZ, outputs

  def fold(
    self,
    s_BID: Array,
    pair_BIJZ: Array,
    batch: Batch,
    last: Recycled,
    train: bool,
  ) -> Folded:
    """See `Folder`."""
    return self.folder(s_BID, pair_BIJZ, batch, last, train)

  def nothing(self, batch: Batch) -> Recycled:
    """What the first pass reads in place of an earlier one."""
    B, T = batch['tokens'].shape
    dtype = jnp.dtype(self.dtype)
    return Recycled(
      jnp.zeros((B, T, self.width), dtype),
      jnp.zeros((B, T, T, self.pair_width), dtype),
      jnp.zeros((B, T, 3), jnp.float32),
    )
