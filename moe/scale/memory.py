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
from moe.scale import cost, orthogonal
from moe.train.state import TrainState
from moe.types import Batch, PyTree

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
    result_width: those of the result.
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
  result_width: int
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


def _hidden(sizes: Sizes, is_sparse: bool) -> int:
  """Numbers of one hidden layer of a block."""
  if is_sparse:
    return sizes.expert_rows * sizes.expert_width
  return sizes.tokens * sizes.dense_width


def _residuals(sizes: Sizes, is_sparse: bool) -> int:
  """Bytes of all that a block leaves for its backward pass, nothing done twice.

  A scan stacks each array that differentiation asks for as it is: nothing is
  fused across the loop.
  """
  half, tokens = sizes.dtype_bytes, sizes.tokens
  width, hidden = sizes.d_model, _hidden(sizes, is_sparse)
  # Each of two norms keeps three float32 arrays, and so do those of queries and
  # keys with the rotation that follows.
  total = 3 * _FULL * tokens * (2 * width + sizes.attention_width // 2)
  # The result of attention as the kernel writes it and, turned, as it is
  # multiplied.
  total += half * tokens * (sizes.attention_width + sizes.result_width + width)
  total += sizes.scores * (_FULL + half)
  # Products and the result; the activation is computed again.
  total += half * sizes.matrices * hidden
  if not is_sparse:
    return total + half * tokens * width
  # The router reads float32; hidden layers meet their weights in float32.
  return (
    total
    + _FULL * (tokens * width + hidden)
    + half * (sizes.expert_rows * width)
  )


def _kept_bytes(sizes: Sizes, is_sparse: bool) -> int:
  """Of one block, what its remat policy keeps beside its period's input."""
  half, tokens, width = sizes.dtype_bytes, sizes.tokens, sizes.d_model
  if sizes.remat == 'none':
    return _residuals(sizes, is_sparse)
  kept = 0
  if sizes.remat == 'dots':
    # Queries, keys, values, and what attention adds. The policy keeps products
    # without batch dims: neither scores nor products of experts.
    kept += tokens * (sizes.attention_width - sizes.result_width + width)
    if not is_sparse:
      kept += (sizes.matrices - 1) * _hidden(sizes, False) + tokens * width
  if 'attention' in sizes.remat:
    kept += tokens * sizes.result_width
  if 'exchange' in sizes.remat:
    kept += tokens * width
    kept += 2 * sizes.expert_rows * width if is_sparse else 0
  return half * kept


def _recomputed(sizes: Sizes, is_sparse: bool) -> int:
  """Bytes of a block between its second forward pass and its backward pass.

  Both are in one turn of a loop: what is cheap is fused into the products that
  read it, and only their own operands and results are arrays.
  """
  if sizes.remat == 'none':
    return 0  # read from the stack in place
  # Residual stream before each branch; queries and keys before and after their
  # norm and rotation.
  numbers = sizes.tokens * (2 * sizes.d_model + 3 * sizes.attention_width // 2)
  numbers += (sizes.matrices - 1) * _hidden(sizes, is_sparse)
  numbers += sizes.expert_rows * sizes.d_model if is_sparse else 0
  scores = sizes.scores * (_FULL + sizes.dtype_bytes)
  done_again = sizes.dtype_bytes * numbers - _kept_bytes(sizes, is_sparse)
  return max(0, done_again) + scores


def _working(sizes: Sizes, is_sparse: bool) -> int:
  """Bytes that come on top while a block is differentiated."""
  # Gradients of what the hidden layer is made of, which is fused into the
  # products that read it; rows that arrive, leave, and wait in another order
  # for both.
  rows = 3 * sizes.expert_rows if is_sparse else 2 * sizes.tokens
  hidden = (sizes.matrices - 1) * _hidden(sizes, is_sparse)
  numbers = hidden + rows * sizes.d_model
  return sizes.dtype_bytes * numbers


def predict(
  abstract: TrainState, logical_axes: PyTree, batch: Batch, sizes: Sizes
) -> Prediction:
  """What a device holds at most.

  Args:
    abstract: TrainState of shapes with shardings.
    logical_axes: of the parameters.
    batch: shapes of the whole batch with shardings.
    sizes: of the work.
  """
  arguments = cost.device_bytes(abstract) + cost.device_bytes(batch)
  half = sizes.dtype_bytes
  counts = [
    (shardings.device_bytes(p, p.sharding) // p.dtype.itemsize, p.dtype)
    for p in jax.tree.leaves(abstract.params)
  ]
  numbers = sum(n for n, _ in counts)
  wider = sum(n for n, dtype in counts if dtype.itemsize > half)
  period, table, prefix = gathered(abstract.params, logical_axes)
  layer_in = sizes.tokens * sizes.d_model * half
  if sizes.remat == 'none':
    layer_in = 0  # its float32 copy is among what a norm keeps
  # A period's last block is sparse, unless the model is dense.
  kinds = [False] * (sizes.blocks - 1) + [sizes.expert_width > 0]
  kept = layer_in + sum(_kept_bytes(sizes, kind) for kind in kinds)
  prefix_kept = sizes.prefix * (layer_in + _kept_bytes(sizes, False))
  has_sums = sizes.num_microbatches > 1
  parts = {
    # The cast to the dtype of products moves out of the loop over layers.
    'copies of parameters': wider * half,
    'sums over microbatches': numbers * sizes.sum_bytes * has_sums,
    'kept for the backward pass': kept * sizes.periods + prefix_kept,
    'gradients': numbers * sizes.grad_bytes,
    # Done again as a whole, then differentiated block by block.
    'one period': sum(_recomputed(sizes, kind) for kind in kinds)
    + max(_working(sizes, kind) for kind in kinds),
    'weights of a period': period * half,
    'logits': sizes.tokens
    // sizes.loss_chunks
    * (table // sizes.d_model)
    * _FULL,
    # As it is multiplied, transposed, and its gradient's sum over tokens.
    'table': table * (2 * half + _FULL),
  }
  update = orthogonal.update(abstract.opt_state, abstract.params)
  if update.working_bytes:
    parts['matrices of an update'] = update.working_bytes
  if sizes.prefix:
    parts |= {
      # Once more: it outlives what the periods kept.
      'kept of the prefix': prefix_kept,
      'one prefix block': _recomputed(sizes, False) + _working(sizes, False),
      'weights of the prefix': prefix // sizes.prefix * half,
    }
  return Prediction(arguments, parts, arguments + _peak(parts))


def _peak(parts: dict[str, int]) -> int:
  """The most of what comes and goes, over the stages of a step."""
  total = lambda *names: sum(parts.get(name, 0) for name in names)
  kept = total('kept for the backward pass')
  loss = kept + total('logits', 'table')
  # Space for the gradients of all layers is set aside before the first of them.
  layers = kept + total('gradients', 'one period', 'weights of a period')
  first = total(
    'kept of the prefix',
    'gradients',
    'one prefix block',
    'weights of the prefix',
  )
  # An update that works element by element needs no room beside its result.
  update = total('gradients', 'matrices of an update')
  lasting = total('copies of parameters', 'sums over microbatches')
  return lasting + max(loss, layers, first, update)
