"""The work of a step on a layout, forecast before anything is compiled.

`work.count` reads the same figures from a compiled program; here they come from
sizes alone, so that a search can compare hundreds of layouts. This file also
has the rules that refuse a layout or warn of it.
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

# Bytes of one number of a weight in a product.
_WEIGHT_BYTES = 2
# Logical axes that divide a parameter only in memory: a step gathers the
# parameter along them before the product.
_GATHERED = (axes.EMBED, axes.LATENT)
# What a transfer carries: its `Transfer.source` in a forecast.
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
  """FLOPs and rows of one device, from which its work is forecast.

  Attributes:
    flops: executed FLOPs of a step on one device.
    exchanged: bytes that a device sends to experts in one exchange.
    sparse_layers: number of layers with an exchange.
    d_model: D.
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
  """One group over the mesh axes `names`, as indices of devices in the mesh."""
  shape = tuple(mesh.shape.values())
  index = [range(n) if a in names else (0,) for a, n in mesh.shape.items()]
  places = [0]
  for size, choices in zip(shape, index, strict=True):
    places = [p * size + c for p in places for c in choices]
  return tuple(places)


def _gathers(
  params: PyTree, logical_axes: PyTree
) -> dict[tuple[tuple[str, ...], int], int]:
  """Bytes of weights to gather: (mesh axes, gathers per pass) -> bytes.

  A step gathers a parameter that is divided over 'embed' or 'latent'. The dims
  of experts, heads and feed-forward widths stay divided in products.
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
  """Parameters on a device whose gradients are summed, by mesh axes of the sum.

  The sum goes over those of `token_axes` that do not divide the parameter:
  devices along them have other tokens but the same parameter.
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
  """How often the rows of a sparse layer cross the expert axis in a step.

  Rows go out and come back in the forward and in the backward pass: 4 times. A
  recomputed layer sends them out once more, because the experts' gradients need
  the rows that arrived. It does not send them back again: combining is a sum,
  whose gradient needs none of its terms, and the output of the period is kept
  as the input of the next. 'dots' keeps no product of experts, because these
  have a batch dim.
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
    token_axes: mesh axes that divide the tokens.
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
  # The optimizer's state is divided over 'data', so updates must be gathered.
  add(GRADIENTS, 'all-gather', (DATA,), local * 4, 1)
  hidden = sizes.tokens * demand.d_model * sizes.dtype_bytes
  add(WIDTHS, 'all-reduce', (MODEL,), hidden, 4 * demand.num_layers * n)
  add(KEYS, 'all-gather', (CONTEXT,), 2 * hidden, 3 * demand.num_layers * n)
  period, table, prefix = memory.gathered(abstract.params, logical_axes)
  weights = (period * sizes.periods + table + prefix) * _WEIGHT_BYTES
  # A step reads weights four times: forward, recomputed, and for the gradients
  # of activations and of weights. It reads and writes the state once. A layer
  # reads or writes activations some thirty times.
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
  """Why a layout cannot work well even with full overlap; None if it can.

  A layout is refused if one kind of transfer takes longer than all products of
  the step. `warnings` checks stricter rules, for one forward pass of one layer
  of experts in bfloat16. Let C be the peak in FLOP/s, W the bytes/s of a link
  in one direction, and I = C / 2W the FLOPs in the time of one byte on a ring
  (2,550 on a v5p, 5,100 on a v6e, 12,800 on a tpu7x). An expert has m matrices.

  - Gathered weights (FSDP): t A EP / E > I. A device multiplies t A rows, A for
    each of its t tokens, and gathers its E / EP experts: 2 m D F t A FLOPs for
    2 m D F E / EP bytes over both links of a ring. MaxText's guide uses the
    tokens of a device for mixed layouts, but the 'global batch' for pure FSDP.
    The latter is too generous by the number of devices, since each device
    gathers all weights.
  - Exchange (EP): 2 m F / n > I. A row has 2 D bytes each way and 2 m D F
    FLOPs. On a ring of n, a byte travels n / 4 links on average and a device
    has two links, so V bytes take V n / 8W. A GELU expert has m = 2, which
    gives the guide's 4 F / EP; a gated expert has 6 F / EP. If the axis covers
    several sides of the torus, n is the longest side and not EP.
  - Divided widths (TP): m F / 2 TP > I. One all-reduce has 2 D bytes for each
    token and 2 m D F / TP FLOPs. With m = 2 this is the guide's F / TP.
  - Pipelines do not exist here.

  A whole step does better than a forward pass: products triple, or quadruple
  with recomputation, while exchanges only double (`exchanges`), and attention
  and dense layers count too. So a refused layout is hopeless.

  Source: MaxText, docs/guides/optimization/custom_model.md, section "Choose
  efficient sharding strategies"; the times of collectives are those of
  https://jax-ml.github.io/scaling-book/sharding.

  Args:
    done: forecast work of a step.
    by_transfer: seconds of each transfer of `done`, times its count.
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
  """FLOPs that a device could do while one byte of a collective arrives."""
  group = _group(mesh, names)
  transfer = collectives.Transfer(kind, names, GIB, 1, group, '')
  seconds, _ = roofline.transfer_seconds(transfer, coords, slice_)
  peak = slice_.chip.peak['bfloat16'] / slice_.chip.devices
  return peak * seconds / GIB


def warnings(
  slice_: Slice, mesh: Mesh, sizes: memory.MicrobatchSizes, demand: StepDemand
) -> list[str]:
  """The rules in `refusal` that one layer's forward pass breaks, as sentences.

  The rules use the real place of each mesh axis on the torus: an axis along two
  rings has twice the bandwidth. A transfer that breaks a rule can only overlap
  with products of other layers.
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
