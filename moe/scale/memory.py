"""Predicts what a step holds on a device, before it is compiled.

For choosing among many layouts in seconds. What is stored from step to step is
exact; of what comes and goes only the large tensors are counted. Checked
against the compiler in tests/scale.
"""

import dataclasses
import math

import jax

from moe import axes
from moe.parallel import shardings
from moe.parallel.mesh import EXPERT
from moe.scale import cost
from moe.types import PyTree

# Bytes of a number in products, and in sums.
_HALF, _FULL = 2, 4


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What one device works on in one microbatch.

  Attributes:
    tokens: of the device.
    d_model: D.
    scores: of one block's attention where they exist as a whole; 0 where a
      kernel makes them piece by piece.
    attention_width: features of queries, keys, values and result together, of
      the device.
    dense_width: F of a dense layer, of the device; 0 for none.
    matrices: of a feed-forward network, 3 with a gate.
    expert_width: F of an expert, of the device; 0 for a dense model.
    expert_rows: slots of all experts held here.
    periods: scanned periods, each of which keeps its input.
    blocks: blocks of a period.
    remat: policy of `moe/models/stack.py`.
    loss_chunks: pieces of the loss.
    num_microbatches: in a step.
    dtype_bytes: of activations.
    grad_bytes: of a gradient.
    sum_bytes: of a gradient's sum over microbatches.
    prefix: unscanned dense blocks before the first period.
  """

  tokens: int
  d_model: int
  scores: int
  attention_width: int
  dense_width: int
  matrices: int
  expert_width: int
  expert_rows: int
  periods: int
  blocks: int
  remat: str
  loss_chunks: int
  num_microbatches: int
  dtype_bytes: int
  grad_bytes: int = 4
  sum_bytes: int = 4
  prefix: int = 0


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Bytes of a device.

  Attributes:
    arguments: parameters, optimizer state, what is carried, and the batch.
    parts: what comes and goes, by name.
    peak: the most at a time.
  """

  arguments: int
  parts: dict[str, int]
  peak: int


def gathered(params: PyTree, logical_axes: PyTree) -> tuple[int, int, int]:
  """Numbers of (a period, the table, all of the prefix) as they are multiplied.

  Undivided, except over experts and over what divides heads and widths.
  """
  names = jax.tree.leaves(logical_axes, is_leaf=lambda a: isinstance(a, tuple))
  period = table = prefix = 0
  for leaf, logical in zip(jax.tree.leaves(params), names, strict=True):
    mesh = leaf.sharding.mesh
    size = leaf.size
    if axes.EXPERT in logical:
      size //= mesh.shape[EXPERT]
    for axis, entry in zip(logical, leaf.sharding.spec, strict=False):
      if axis in (axes.MLP, axes.HEADS, axes.EXPERT_MLP, axes.VOCAB):
        entry = (entry,) if isinstance(entry, str) else entry or ()
        size //= math.prod(mesh.shape[a] for a in entry)
    if axes.LAYERS in logical:
      period += size // leaf.shape[logical.index(axes.LAYERS)]
    elif axes.VOCAB in logical:
      table = max(table, size)
    else:
      prefix += size
  return period, table, prefix


def _block_bytes(sizes: Sizes, is_prefix: bool = False) -> int:
  """Activations of one block's forward pass, kept for its backward pass."""
  half = sizes.dtype_bytes
  # A period of one block has a sparse one, or a dense one in a dense model.
  has_dense = is_prefix or sizes.blocks > 1 or not sizes.expert_width
  wide = sizes.tokens * sizes.dense_width * has_dense
  rows = sizes.tokens
  if not is_prefix:
    wide = max(wide, sizes.expert_rows * sizes.expert_width)
    rows += 2 * sizes.expert_rows
  attention = sizes.tokens * max(4 * sizes.d_model, sizes.attention_width)
  hidden = sizes.matrices * wide
  scores = sizes.scores * (_FULL + half)
  return half * (hidden + rows * sizes.d_model + attention) + scores


def _kept_bytes(sizes: Sizes, is_prefix: bool = False) -> int:
  """Of one block, what its remat policy keeps beside its input."""
  half, width = sizes.dtype_bytes, sizes.d_model
  if sizes.remat == 'none':
    return _block_bytes(sizes, is_prefix)
  if sizes.remat == 'dots':
    scores = sizes.scores * (_FULL + half)
    return _block_bytes(sizes, is_prefix) - scores
  kept = sizes.tokens * width if 'attention' in sizes.remat else 0
  if 'exchange' in sizes.remat:
    kept += sizes.tokens * width
    kept += 0 if is_prefix else 2 * sizes.expert_rows * width // sizes.blocks
  return half * kept


def predict(abstract, logical_axes: PyTree, batch, sizes: Sizes) -> Prediction:
  """What a device holds at most.

  Args:
    abstract: TrainState of shapes with shardings.
    logical_axes: of the parameters.
    batch: shapes of the whole batch with shardings.
    sizes: of the work.
  """
  arguments = cost.device_bytes(abstract) + cost.device_bytes(batch)
  half = sizes.dtype_bytes
  numbers = sum(
    shardings.device_bytes(p, p.sharding) // p.dtype.itemsize
    for p in jax.tree.leaves(abstract.params)
  )
  period, table, prefix = gathered(abstract.params, logical_axes)
  layer_in = sizes.tokens * sizes.d_model * half
  block = _block_bytes(sizes)
  logit_columns = table // sizes.d_model
  kept = sizes.periods * (layer_in + _kept_bytes(sizes) * sizes.blocks)
  kept += sizes.prefix * (layer_in + _kept_bytes(sizes, is_prefix=True))
  is_full = any(
    p.dtype.itemsize > half for p in jax.tree.leaves(abstract.params)
  )
  parts = {
    # The cast to the dtype of products moves out of the loop over layers.
    'copies of parameters': numbers * half if is_full else 0,
    'gradients': numbers
    * (sizes.grad_bytes + sizes.sum_bytes * (sizes.num_microbatches > 1)),
    'kept for the backward pass': kept,
    # Done again as a whole, then differentiated block by block.
    'one period': block * sizes.blocks,
    'weights of a period': period * half * 2,
    'one prefix block': _block_bytes(sizes, is_prefix=True),
    'weights of the prefix': prefix // max(1, sizes.prefix) * half * 2,
    'logits': sizes.tokens // sizes.loss_chunks * logit_columns * _FULL,
    'table': table * (2 * half + (_FULL if sizes.loss_chunks > 1 else 0)),
  }  # fmt: skip
  if not sizes.prefix:
    del parts['one prefix block'], parts['weights of the prefix']
  stage = max(
    parts['one period'] + parts['weights of a period'],
    parts.get('one prefix block', 0) + parts.get('weights of the prefix', 0),
    parts['logits'] + parts['table'],
  )
  # What lives at different times seldom shares an address: the stages of the
  # step are added up, and only block and loss take each other's place.
  lasting = ('copies of parameters', 'gradients', 'kept for the backward pass')
  peak = arguments + sum(parts[name] for name in lasting) + stage
  return Prediction(arguments, parts, peak)
