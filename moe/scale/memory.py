"""Predicts the memory of a step on one device, without compiling.

So hundreds of layouts can be compared in seconds. The bytes of arguments (state
and batch) are exact. The bytes of temporaries include only the large tensors.
tests/scale compares the prediction with the compiler's numbers.
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

_FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class MicrobatchSizes:
  """Sizes of the tensors of one microbatch on one device.

  Widths and counts are those of the device, after sharding.

  Attributes:
    tokens: number of tokens.
    d_model: D, width of the residual stream.
    scores: number of attention scores of one block; 0 if a kernel computes them
      tile by tile and never stores them as a whole.
    attention_width: features of queries, keys, values and attention output
      together.
    result_width: features of the attention output alone.
    dense_width: F of a dense layer; 0 if there is none.
    matrices: weight matrices of a feed-forward network: 3 with a gate, else 2.
    expert_width: F of an expert; 0 for a dense model.
    expert_rows: rows in the buffers of all experts on the device.
    periods: number of scanned periods. The input of each period is kept for the
      backward pass.
    blocks: number of blocks in a period.
    remat: policy of `moe/models/stack.py`.
    loss_chunks: number of chunks of the loss.
    num_microbatches: microbatches of a step.
    dtype_bytes: bytes of one number in activations.
    grad_bytes: bytes of one number in a gradient.
    sum_bytes: bytes of one number in the sum of gradients over microbatches.
    prefix: number of dense blocks outside the scan over periods.
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
class DeviceBytes:
  """Predicted bytes of one device.

  Attributes:
    arguments: bytes of parameters, optimizer state, model state and batch.
    parts: bytes of temporaries by name.
    peak: the most bytes in use at one time.
  """

  arguments: int
  parts: dict[str, int]
  peak: int


def gathered(params: PyTree, logical_axes: PyTree) -> tuple[int, int, int]:
  """Number of parameters on a device after they are gathered.

  Weights are gathered before a product. But the dims of experts, heads,
  feed-forward widths and vocabulary stay divided.

  Returns:
    (parameters of one period, of the largest table, of the whole prefix).
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


def _hidden(sizes: MicrobatchSizes, is_sparse: bool) -> int:
  """Number of elements in one hidden layer of a block."""
  if is_sparse:
    return sizes.expert_rows * sizes.expert_width
  return sizes.tokens * sizes.dense_width


def _residuals(sizes: MicrobatchSizes, is_sparse: bool) -> int:
  """Bytes that a block keeps for its backward pass without rematerialisation.

  The scan over layers stores every array that the backward pass needs, since
  XLA cannot fuse operations of the forward loop with those of the backward
  loop.
  """
  dtype_bytes, tokens = sizes.dtype_bytes, sizes.tokens
  width, hidden = sizes.d_model, _hidden(sizes, is_sparse)
  # Each of the two norms of a block keeps three float32 arrays of its width.
  # Queries and keys keep three as well, for their norms and rotary embeddings.
  # About half of `attention_width` is queries and keys.
  total = 3 * _FLOAT32_BYTES * tokens * (2 * width + sizes.attention_width // 2)
  # The output of attention exists twice: in the kernel's layout, and transposed
  # for the next product.
  total += (
    dtype_bytes * tokens * (sizes.attention_width + sizes.result_width + width)
  )
  total += sizes.scores * (_FLOAT32_BYTES + dtype_bytes)
  # The network keeps the results of its first products, and the hidden layer as
  # the operand of its last product. Values inside the activation function are
  # computed again.
  total += dtype_bytes * sizes.matrices * hidden
  if not is_sparse:
    return total + dtype_bytes * tokens * width
  # Two arrays are float32: the input of the router, and the hidden layer, which
  # is multiplied by the combine weights.
  return (
    total
    + _FLOAT32_BYTES * (tokens * width + hidden)
    + dtype_bytes * (sizes.expert_rows * width)
  )


def _kept_bytes(sizes: MicrobatchSizes, is_sparse: bool) -> int:
  """Bytes that the remat policy keeps inside a block, without its input."""
  dtype_bytes, tokens, width = sizes.dtype_bytes, sizes.tokens, sizes.d_model
  if sizes.remat == 'none':
    return _residuals(sizes, is_sparse)
  kept = 0
  if sizes.remat == 'dots':
    # The policy keeps the results of products without batch dims: queries,
    # keys, values and the output projection of attention. Scores and products
    # of experts have batch dims.
    kept += tokens * (sizes.attention_width - sizes.result_width + width)
    if not is_sparse:
      kept += (sizes.matrices - 1) * _hidden(sizes, False) + tokens * width
  if 'attention' in sizes.remat:
    kept += tokens * sizes.result_width
  if 'exchange' in sizes.remat:
    kept += tokens * width
    kept += 2 * sizes.expert_rows * width if is_sparse else 0
  return dtype_bytes * kept


def _recomputed(sizes: MicrobatchSizes, is_sparse: bool) -> int:
  """Bytes of a block that are recomputed for its backward pass.

  The recomputation and the backward pass are in the same iteration of a loop.
  So XLA fuses elementwise operations into the next product, and only operands
  and results of products exist as arrays.
  """
  if sizes.remat == 'none':
    return 0  # The backward pass reads the kept arrays in place.
  # These numbers are the residual stream before attention and before the
  # feed-forward network, and queries and keys (half of `attention_width`)
  # before their norm, after it, and after the rotary embedding.
  numbers = sizes.tokens * (2 * sizes.d_model + 3 * sizes.attention_width // 2)
  numbers += (sizes.matrices - 1) * _hidden(sizes, is_sparse)
  numbers += sizes.expert_rows * sizes.d_model if is_sparse else 0
  scores = sizes.scores * (_FLOAT32_BYTES + sizes.dtype_bytes)
  done_again = sizes.dtype_bytes * numbers - _kept_bytes(sizes, is_sparse)
  return max(0, done_again) + scores


def _working(sizes: MicrobatchSizes, is_sparse: bool) -> int:
  """Bytes of the gradients of activations inside one block."""
  # These are the gradients of the hidden layer before its activation function,
  # and gradients of rows: of the inputs and outputs of the network and, if it
  # has experts, of the permuted rows.
  rows = 3 * sizes.expert_rows if is_sparse else 2 * sizes.tokens
  hidden = (sizes.matrices - 1) * _hidden(sizes, is_sparse)
  numbers = hidden + rows * sizes.d_model
  return sizes.dtype_bytes * numbers


def predict(
  abstract: TrainState,
  logical_axes: PyTree,
  batch: Batch,
  sizes: MicrobatchSizes,
) -> DeviceBytes:
  """Predicts the memory of a training step on one device.

  Args:
    abstract: TrainState of shapes with shardings.
    logical_axes: logical axes of the parameters.
    batch: shapes of the whole batch with shardings.
    sizes: sizes of a microbatch.
  """
  arguments = cost.device_bytes(abstract) + cost.device_bytes(batch)
  dtype_bytes = sizes.dtype_bytes
  counts = [
    (shardings.device_bytes(p, p.sharding) // p.dtype.itemsize, p.dtype)
    for p in jax.tree.leaves(abstract.params)
  ]
  numbers = sum(n for n, _ in counts)
  wider = sum(n for n, dtype in counts if dtype.itemsize > dtype_bytes)
  period, table, prefix = gathered(abstract.params, logical_axes)
  layer_in = sizes.tokens * sizes.d_model * dtype_bytes
  if sizes.remat == 'none':
    layer_in = 0  # `_residuals` counts the input: a norm keeps it in float32.
  # The last block of a period is sparse unless the model is dense.
  kinds = [False] * (sizes.blocks - 1) + [sizes.expert_width > 0]
  kept = layer_in + sum(_kept_bytes(sizes, kind) for kind in kinds)
  prefix_kept = sizes.prefix * (layer_in + _kept_bytes(sizes, False))
  has_sums = sizes.num_microbatches > 1
  parts = {
    # The compiler casts the parameters of all layers before the loop over
    # layers, so all copies exist at once.
    'copies of parameters': wider * dtype_bytes,
    'sums over microbatches': numbers * sizes.sum_bytes * has_sums,
    'kept for the backward pass': kept * sizes.periods + prefix_kept,
    'gradients': numbers * sizes.grad_bytes,
    # First the whole period is recomputed. Then the backward pass goes block by
    # block, so only the largest block's gradients count.
    'one period': sum(_recomputed(sizes, kind) for kind in kinds)
    + max(_working(sizes, kind) for kind in kinds),
    'weights of a period': period * dtype_bytes,
    'logits': sizes.tokens
    // sizes.loss_chunks
    * (table // sizes.d_model)
    * _FLOAT32_BYTES,
    # The table exists as an operand, as its transpose, and as its gradient.
    'table': table * (2 * dtype_bytes + _FLOAT32_BYTES),
  }
  update = orthogonal.update(abstract.opt_state, abstract.params)
  if update.working_bytes:
    parts['matrices of an update'] = update.working_bytes
  if sizes.prefix:
    parts |= {
      # These bytes are also in 'kept for the backward pass'. `_peak` needs them
      # separately for the stage in which the arrays of the periods are freed.
      'kept of the prefix': prefix_kept,
      'one prefix block': _recomputed(sizes, False) + _working(sizes, False),
      'weights of the prefix': prefix // sizes.prefix * dtype_bytes,
    }
  return DeviceBytes(arguments, parts, arguments + _peak(parts))


def _peak(parts: dict[str, int]) -> int:
  """The peak of temporary bytes, as the maximum over the stages of a step."""
  total = lambda *names: sum(parts.get(name, 0) for name in names)
  kept = total('kept for the backward pass')
  loss = kept + total('logits', 'table')
  # The compiler allocates the gradients of all layers before the backward pass
  # of the first layer.
  layers = kept + total('gradients', 'one period', 'weights of a period')
  first = total(
    'kept of the prefix',
    'gradients',
    'one prefix block',
    'weights of the prefix',
  )
  # An elementwise update needs no memory besides its result. An update with
  # matrix products, such as Muon's, needs more.
  update = total('gradients', 'matrices of an update')
  lasting = total('copies of parameters', 'sums over microbatches')
  return lasting + max(loss, layers, first, update)
