"""Forecasts the work of a step on a layout, without compiling.

`work.count` reads the same numbers from a compiled program. Here they are
computed from sizes alone, so that a search can compare hundreds of layouts.
This file also has the rules that refuse a layout or warn of it.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from moe import axes
from moe.parallel.mesh import CONTEXT, DATA, EXPERT, FSDP, MODEL
from moe.scale import collectives, cost, memory, orthogonal, roofline, work
from moe.scale.topology import GIB, Slice
from moe.train.state import TrainState
from moe.types import PyTree

# Bytes of one weight in a product, which uses bfloat16.
_WEIGHT_BYTES = 2
# Along these logical axes, a parameter is divided only in memory. A step
# gathers the parameter before the product.
_GATHERED = (axes.EMBED, axes.LATENT)
# In a forecast, `Transfer.source` is one of these names. It says what is moved.
WEIGHTS, ROWS, WIDTHS = 'weights', 'rows', 'widths'
KEYS, GRADIENTS, MATRICES = 'keys', 'gradients', 'matrices'
_WORDS = {
  WEIGHTS: 'gathering weights and scattering their gradients',
  ROWS: 'the exchange of rows between experts',
  WIDTHS: 'summing the parts of heads and widths',
  KEYS: 'gathering keys and values along the sequence',
  GRADIENTS: 'summing gradients of replicated parameters',
  MATRICES: 'bringing parts of matrices together for Muon',
}
_WAYS_OUT = {
  WEIGHTS: 'more tokens per device and microbatch, a larger MESH_EXPERT, or a'
  ' smaller MESH_FSDP',
  ROWS: 'a smaller MESH_EXPERT or wider experts',
  WIDTHS: 'a smaller MESH_MODEL',
  KEYS: 'less context parallelism',
  GRADIENTS: 'more tokens per step, or MESH_FSDP instead of MESH_DATA',
  MATRICES: 'more tokens per step, or OPTIMIZER=@optimizers.adamw',
}


@dataclasses.dataclass(frozen=True)
class StepDemand:
  """FLOPs and rows of one device in a step, the input of the forecast.

  Attributes:
    flops: executed FLOPs of a step on one device.
    exchanged: bytes that a device sends to experts in one exchange.
    sparse_layers: number of sparse layers; each exchanges rows.
    d_model: D, width of the residual stream.
    num_layers: number of all layers.
    rows_per_expert: rows of a microbatch that one expert of a device gets,
      without empty slots.
  """

  flops: float
  exchanged: int
  sparse_layers: int
  d_model: int
  num_layers: int
  rows_per_expert: float = 0.0


def _axes(entry) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _group(mesh, names: tuple[str, ...]) -> tuple[int, ...]:
  """The first device group over mesh axes `names`, as indices in the mesh."""
  shape = tuple(mesh.shape.values())
  index = [range(n) if a in names else (0,) for a, n in mesh.shape.items()]
  places = [0]
  for size, choices in zip(shape, index, strict=True):
    places = [p * size + c for p in places for c in choices]
  return tuple(places)


def _gathers(
  params: PyTree, logical_axes: PyTree
) -> dict[tuple[tuple[str, ...], int], int]:
  """Bytes of weights that a device gathers in a pass over the layers.

  A step gathers a parameter whose dim 'embed' or 'latent' is divided. The dims
  of experts, heads and feed-forward widths stay divided in products.

  Returns:
    (mesh axes, number of gathers) -> bytes of one gather.
  """
  found = {}
  names = jax.tree.leaves(logical_axes, is_leaf=lambda a: isinstance(a, tuple))
  for leaf, logical in zip(jax.tree.leaves(params), names, strict=True):
    spec = list(leaf.sharding.spec) + [None] * len(logical)
    over, kept, layers = (), 1, 1
    for axis, dim, entry in zip(logical, leaf.shape, spec, strict=False):
      if axis in _GATHERED:
        over += _axes(entry)
      else:
        kept *= math.prod(leaf.sharding.mesh.shape[a] for a in _axes(entry))
      if axis == axes.LAYERS:
        layers = dim
    if over:
      whole = leaf.size // layers // kept * _WEIGHT_BYTES
      found[over, layers] = found.get((over, layers), 0) + whole
  return found


def _summed(
  params: PyTree, token_axes: tuple[str, ...]
) -> dict[tuple[str, ...], int]:
  """Counts parameters by the mesh axes over which their gradients are summed.

  The gradient of a parameter is summed over the axes of `token_axes` that do
  not divide this parameter: devices along these axes have the same parameter
  and different tokens.

  Returns:
    Mesh axes -> number of parameters on a device.
  """
  found = {}
  for leaf in jax.tree.leaves(params):
    sharding = leaf.sharding
    used = {a for entry in sharding.spec for a in _axes(entry)}
    over = tuple(a for a in token_axes if a not in used)
    held = math.prod(sharding.shard_shape(leaf.shape))
    found[over] = found.get(over, 0) + held
  return found


def exchanges(remat: str) -> int:
  """Number of times that the rows of a sparse layer are exchanged in a step.

  Rows are sent to the experts and back, in the forward and in the backward
  pass: 4 times. A recomputed layer sends rows to the experts once more, because
  the gradients of the experts need the received rows; only the policies with
  'exchange' keep these rows. The layer does not send rows back once more, for
  two reasons. Combining is a sum, and the gradient of a sum does not need its
  terms. The output of the period is kept as the input of the next period.
  """
  return 4 if remat == 'none' or 'exchange' in remat else 5


def forecast_work(
  abstract: TrainState,
  logical_axes: PyTree,
  mesh: Mesh,
  token_axes: tuple[str, ...],
  sizes: memory.MicrobatchSizes,
  demand: StepDemand,
) -> work.StepWork:
  """Forecasts the work of one device in a step.

  Args:
    abstract: TrainState of shapes with shardings on the mesh.
    logical_axes: logical axes of the parameters.
    mesh: a mesh of devices that need not exist.
    token_axes: mesh axes that divide the tokens of a batch.
    sizes: sizes of one microbatch on one device.
    demand: FLOPs and rows of one step on one device.
  """
  n = sizes.num_microbatches
  transfers = []

  def add(source, kind, names, num_bytes, times):
    names = tuple(a for a in names if mesh.shape[a] > 1)
    if names and num_bytes and times:
      group = _group(mesh, names)
      transfers.append(
        collectives.Transfer(kind, names, int(num_bytes), times, group, source)
      )

  times = exchanges(sizes.remat) * demand.sparse_layers * n
  add(ROWS, 'all-to-all', (EXPERT,), demand.exchanged, times)
  for (over, layers), whole in _gathers(abstract.params, logical_axes).items():
    add(WEIGHTS, 'all-gather', over, whole, 2 * layers * n)
    add(WEIGHTS, 'reduce-scatter', over, whole, layers * n)
  local = 0
  for over, numbers in _summed(abstract.params, token_axes).items():
    add(GRADIENTS, 'all-reduce', over, numbers * sizes.grad_bytes, n)
    local += numbers
  for moved in orthogonal.update(abstract.opt_state, abstract.params).transfers:
    add(MATRICES, moved.kind, (moved.axis,), moved.num_bytes, moved.times)
  # The optimizer's state is divided over 'data', so each device computes a part
  # of the updates and all parts must be gathered.
  add(GRADIENTS, 'all-gather', (DATA,), local * 4, 1)
  hidden = sizes.tokens * demand.d_model * sizes.dtype_bytes
  add(WIDTHS, 'all-reduce', (MODEL,), hidden, 4 * demand.num_layers * n)
  add(KEYS, 'all-gather', (CONTEXT,), 2 * hidden, 3 * demand.num_layers * n)
  period, table, prefix = memory.gathered(abstract.params, logical_axes)
  weights = (period * sizes.periods + table + prefix) * _WEIGHT_BYTES
  # Each of n microbatches reads the weights in the forward pass, in the
  # recomputation and for the gradients of activations, and writes gradients of
  # the weights. A layer reads or writes activations about thirty times in each
  # microbatch. A step reads and writes the state once.
  num_bytes = 4 * n * weights + 2 * cost.device_bytes(abstract)
  num_bytes += 30 * hidden * demand.num_layers * n
  return work.StepWork(
    demand.flops,
    num_bytes,
    ((demand.flops, 0, 1), (0, num_bytes / 4, 1)),
    tuple(transfers),
    0.0,
    0.0,
    (),
  )


def refusal(
  done: work.StepWork, by_transfer: Sequence[float], peak: float
) -> str | None:
  """Says why a layout is too slow even with full overlap; None if it is not.

  A layout is refused if one kind of transfer takes longer than all products of
  the step. `warnings` checks stricter rules, for the forward pass of one layer
  in bfloat16. Let C be the peak in FLOP/s and W the bytes/s of a link in
  one direction. A ring moves one byte in the time of I = C / 2W FLOPs (2,550 on
  a v5p, 5,100 on a v6e, 12,800 on a tpu7x). An expert has m matrices. EP and TP
  are the numbers of devices along the axes 'expert' and 'model'.

  - Gathered weights (FSDP): t A EP / E > I. A device multiplies t A rows, A for
    each of its t tokens, which takes 2 m D F t A FLOPs. It gathers its E / EP
    experts, 2 m D F E / EP bytes, over both links of a ring. MaxText's guide
    takes the tokens of a device for mixed layouts, but the 'global batch' for
    pure FSDP. With the global batch, the ratio is too large by a factor of the
    number of devices, since each device gathers all weights.
  - Exchange (EP): 2 m F / n > I. A row has 2 D bytes each way and 2 m D F
    FLOPs. On a ring of n, a byte travels n / 4 links on average and a device
    has two links, so V bytes take V n / 8W. A GELU expert has m = 2, which
    gives the guide's 4 F / EP; a gated expert has 6 F / EP. If the axis covers
    several sides of the torus, n is the longest side and not EP.
  - Divided widths (TP): m F / 2 TP > I. For each token, a device does 2 m D F /
    TP FLOPs and sums 2 D bytes in an all-reduce. With m = 2 this is the guide's
    F / TP.
  - Pipelines have no rule, since this project has none.

  A whole step has more products per byte than a forward pass. Products triple,
  or quadruple with recomputation. Exchanges only double, or become 2.5 times as
  many with recomputation (`exchanges`). Attention and dense layers add products
  without such transfers. So if even a whole step breaks a rule, no overlap can
  make the layout fast.

  Source: MaxText, docs/guides/optimization/custom_model.md, section "Choose
  efficient sharding strategies"; the times of collectives are those of
  https://jax-ml.github.io/scaling-book/sharding.

  Args:
    done: forecast work of a step.
    by_transfer: seconds of each transfer of `done`, summed over its runs.
    peak: FLOP/s of a device.
  """
  products = done.flops / peak
  taken = {}
  for transfer, seconds in zip(done.transfers, by_transfer, strict=True):
    taken[transfer.source] = taken.get(transfer.source, 0.0) + seconds
  worst = max(taken, key=taken.get, default=None)
  if worst is None or taken[worst] <= products:
    return None
  return (
    f'{_WORDS[worst]} takes longer than all products: {taken[worst]:.3g} s'
    f' against {products:.3g} s a step; use {_WAYS_OUT[worst]}'
  )


def _flops_of_a_byte(kind: str, names, mesh, slice_: Slice, coords) -> float:
  """FLOPs that a device could do while a collective moves one byte."""
  group = _group(mesh, names)
  transfer = collectives.Transfer(kind, names, GIB, 1, group, '')
  seconds, _ = roofline.transfer_seconds(transfer, coords, slice_)
  peak = slice_.chip.peak['bfloat16'] / slice_.chip.devices
  return peak * seconds / GIB


def warnings(
  slice_: Slice, mesh: Mesh, sizes: memory.MicrobatchSizes, demand: StepDemand
) -> list[str]:
  """Lists the rules of `refusal` that the forward pass of one layer breaks.

  Each broken rule gives a sentence. The rules use the real place of each mesh
  axis on the torus: an axis along two rings has twice the bandwidth. If a
  transfer breaks a rule, the products of its layer are too short to hide the
  transfer. It must then overlap with products of other layers.
  """
  coords = roofline.coordinates(list(mesh.devices.flat))
  said = []

  def rule(what: str, has: float, kind: str, names):
    names = tuple(a for a in names if mesh.shape[a] > 1)
    if not names:
      return
    needed = _flops_of_a_byte(kind, names, mesh, slice_, coords)
    if has < needed:
      said.append(
        f'{what} gives {has:,.0f} FLOPs for each byte, fewer than the'
        f' {needed:,.0f} of the links of {"+".join(names)}'
      )

  m = sizes.matrices
  if demand.sparse_layers:
    gathered = f'{demand.rows_per_expert:,.0f} rows per expert'
    rule(gathered, demand.rows_per_expert, 'all-gather', (FSDP,))
    rows = f'an expert of width {sizes.expert_width:,}'
    rule(rows, m * sizes.expert_width / 2, 'all-to-all', (EXPERT,))
  if sizes.dense_width:
    tokens = f'{sizes.tokens:,} tokens per dense layer'
    rule(tokens, sizes.tokens, 'all-gather', (FSDP,))
    widths = f'a dense layer of {sizes.dense_width:,} columns'
    rule(widths, m * sizes.dense_width, 'all-reduce', (MODEL,))
  return said
