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
    length: T.
    d_model: D.
    vocab_size: V.
    num_heads: N, of the device.
    dense_width: F of the widest dense layer, of the device; 0 for none.
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
    has_fused_attention: whether the scores never exist as a whole.
  """

  tokens: int
  length: int
  d_model: int
  vocab_size: int
  num_heads: int
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
  has_fused_attention: bool = False


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


def gathered(params: PyTree, logical_axes: PyTree) -> tuple[int, int]:
  """Numbers of (one period's parameters, the table) as they are multiplied.

  Undivided, except over experts and over what divides heads and widths.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  names = jax.tree.leaves(logical_axes, is_leaf=lambda a: isinstance(a, tuple))
  period = table = 0
  for (_, leaf), logical in zip(flat, names, strict=True):
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
  return period, table


def _scores(sizes: Sizes) -> int:
  if sizes.has_fused_attention:
    return 0
  rows = sizes.tokens // sizes.length
  return rows * sizes.num_heads * sizes.length**2


def _block_bytes(sizes: Sizes) -> int:
  """Activations of one block's forward pass, kept for its backward pass."""
  half = sizes.dtype_bytes
  wide = max(
    sizes.tokens * sizes.dense_width, sizes.expert_rows * sizes.expert_width
  )
  rows = sizes.tokens + 2 * sizes.expert_rows
  attention = 4 * sizes.tokens * sizes.d_model
  hidden = sizes.matrices * wide
  return half * (hidden + rows * sizes.d_model + attention) + _scores(sizes) * (
    _FULL + half
  )


def _kept_bytes(sizes: Sizes) -> int:
  """Of one block, what its remat policy keeps beside the period's input."""
  half, width = sizes.dtype_bytes, sizes.d_model
  if sizes.remat == 'none':
    return _block_bytes(sizes)
  if sizes.remat == 'dots':
    return _block_bytes(sizes) - _scores(sizes) * (_FULL + half)
  kept = sizes.tokens * width if 'attention' in sizes.remat else 0
  if 'exchange' in sizes.remat:
    kept += 2 * sizes.expert_rows * width // sizes.blocks
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
  period, table = gathered(abstract.params, logical_axes)
  layer_in = sizes.tokens * sizes.d_model * half
  block = _block_bytes(sizes)
  logit_columns = table // sizes.d_model
  kept = layer_in + _kept_bytes(sizes) * sizes.blocks
  is_full = any(
    p.dtype.itemsize > half for p in jax.tree.leaves(abstract.params)
  )
  parts = {
    # The cast to the dtype of products moves out of the loop over layers.
    'copies of parameters': numbers * half if is_full else 0,
    'gradients': numbers
    * (sizes.grad_bytes + sizes.sum_bytes * (sizes.num_microbatches > 1)),
    'kept for the backward pass': kept * sizes.periods,
    # Done again as a whole, then differentiated block by block.
    'one period': block * sizes.blocks,
    'weights of a period': period * half * 2,
    'logits': sizes.tokens // sizes.loss_chunks * logit_columns * _FULL,
    'table': table * (2 * half + (_FULL if sizes.loss_chunks > 1 else 0)),
  }  # fmt: skip
  stage = max(
    parts['one period'] + parts['weights of a period'],
    parts['logits'] + parts['table'],
  )
  # What lives at different times seldom shares an address: the stages of the
  # step are added up, and only block and loss take each other's place.
  lasting = ('copies of parameters', 'gradients', 'kept for the backward pass')
  peak = arguments + sum(parts[name] for name in lasting) + stage
  return Prediction(arguments, parts, peak)
