"""What a step would do on a layout, before anything is compiled.

The same account as `work.count` gives of a compiled program, made from sizes
alone, for choosing among hundreds of layouts; and the rules by which a layout
is refused, or warned of.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from moe import axes
from moe.parallel.mesh import CONTEXT, DATA, EXPERT, FSDP, MODEL
from moe.scale import cost, memory, orthogonal, roofline
from moe.scale.topology import Slice
from moe.train.state import TrainState
from moe.types import PyTree

_HALF = 2
_GIB = 2**30
# Logical axes that divide a parameter in memory, but not where it is
# multiplied: it is gathered along them first.
_GATHERED = (axes.EMBED, axes.LATENT)
# What travels, as `Transfer.source` of a forecast and in words.
WEIGHTS, ROWS, WIDTHS = 'weights', 'rows', 'widths'
KEYS, GRADIENTS, MATRICES = 'keys', 'gradients', 'matrices'
_WORDS = {
  WEIGHTS: 'gathering weights and scattering their gradients',
  ROWS: 'the exchange of rows between experts',
  WIDTHS: 'adding up parts of heads and widths',
  KEYS: 'gathering keys and values along the sequence',
  GRADIENTS: 'adding up gradients of replicated parameters',
  MATRICES: 'bringing parts of matrices together for Muon',
}
_WAYS_OUT = {
  WEIGHTS: 'more tokens a device and microbatch, more MESH_EXPERT, or less'
  ' MESH_FSDP',
  ROWS: 'less MESH_EXPERT or wider experts',
  WIDTHS: 'less MESH_MODEL',
  KEYS: 'less context parallelism',
  GRADIENTS: 'more tokens a step, or MESH_FSDP in place of MESH_DATA',
  MATRICES: 'more tokens a step, or OPTIMIZER=@optimizers.adamw',
}


@dataclasses.dataclass(frozen=True)
class Load:
  """What goes through a device's links and products.

  Attributes:
    flops: executed in a step by one device.
    exchanged: bytes of rows that a device sends to experts, each time.
    sparse_layers: layers with an exchange.
    d_model: D.
    num_layers: layers.
    rows_per_expert: rows of a microbatch that one expert of a device works on,
      empty slots left out.
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
  """Places in the mesh of the devices that differ from the first in `names`."""
  shape = tuple(mesh.shape.values())
  index = [range(n) if a in names else (0,) for a, n in mesh.shape.items()]
  places = [0]
  for size, choices in zip(shape, index, strict=True):
    places = [p * size + c for p in places for c in choices]
  return tuple(places)


def _gathers(
  params: PyTree, logical_axes: PyTree
) -> dict[tuple[tuple[str, ...], int], int]:
  """Bytes that must be gathered before use: (mesh axes, times a step) -> bytes.

  A parameter is gathered where 'embed' or 'latent' divides it; the dims of
  experts, heads and feed-forward widths stay divided in products.
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
      whole = leaf.size // layers // kept * _HALF
      found[over, layers] = found.get((over, layers), 0) + whole
  return found


def _summed(
  params: PyTree, token_axes: tuple[str, ...]
) -> dict[tuple[str, ...], int]:
  """Numbers on a device whose gradients are added up: mesh axes -> numbers.

  Devices that have other tokens and the same parameter differ in those of
  `token_axes` that do not divide it.
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
  """Times that the rows of a sparse layer cross the expert axis in a step.

  Out and back, forward and backward: 4. Where the layer is done again they go
  out once more, since the experts' gradients need what arrived; the way back is
  not repeated, for unpacking is a sum, whose gradient needs none of its terms,
  and a period, which ends with the sparse layer, keeps its output as the next
  one's input. 'dots' keeps no product of experts, as these have a batch dim.
  """
  return 4 if remat == 'none' or 'exchange' in remat else 5


def work(
  abstract: TrainState,
  logical_axes: PyTree,
  mesh: Mesh,
  token_axes: tuple[str, ...],
  sizes: memory.Sizes,
  load: Load,
) -> roofline.Work:
  """The account of a step.

  Args:
    abstract: TrainState of shapes with shardings on the mesh.
    logical_axes: of the parameters.
    mesh: of devices that need not exist.
    token_axes: mesh axes whose devices have other tokens.
    sizes: of one microbatch on one device.
    load: of one step on one device.
  """
  n = sizes.num_microbatches
  transfers = []

  def add(source, kind, names, num_bytes, times):
    names = tuple(a for a in names if mesh.shape[a] > 1)
    if names and num_bytes and times:
      group = _group(mesh, names)
      transfers.append(
        roofline.Transfer(kind, names, int(num_bytes), times, group, source)
      )

  times = exchanges(sizes.remat) * load.sparse_layers * n
  add(ROWS, 'all-to-all', (EXPERT,), load.exchanged, times)
  for (over, layers), whole in _gathers(abstract.params, logical_axes).items():
    add(WEIGHTS, 'all-gather', over, whole, 2 * layers * n)
    add(WEIGHTS, 'reduce-scatter', over, whole, layers * n)
  local = 0
  for over, numbers in _summed(abstract.params, token_axes).items():
    add(GRADIENTS, 'all-reduce', over, numbers * sizes.grad_bytes, n)
    local += numbers
  for moved in orthogonal.update(abstract.opt_state, abstract.params).transfers:
    add(MATRICES, moved.kind, (moved.axis,), moved.num_bytes, moved.times)
  # The optimizer's state is divided over 'data': its updates are put together.
  add(GRADIENTS, 'all-gather', (DATA,), local * 4, 1)
  hidden = sizes.tokens * load.d_model * sizes.dtype_bytes
  add(WIDTHS, 'all-reduce', (MODEL,), hidden, 4 * load.num_layers * n)
  add(KEYS, 'all-gather', (CONTEXT,), 2 * hidden, 3 * load.num_layers * n)
  period, table, prefix = memory.gathered(abstract.params, logical_axes)
  weights = (period * sizes.periods + table + prefix) * _HALF
  # Weights are read forward, again, and for both gradients; the state is read
  # and written once; activations pass through memory some thirty times a layer.
  num_bytes = 4 * n * weights + 2 * cost.device_bytes(abstract)
  num_bytes += 30 * hidden * load.num_layers * n
  return roofline.Work(
    load.flops,
    num_bytes,
    ((load.flops, 0, 1), (0, num_bytes / 4, 1)),
    tuple(transfers),
    0.0,
    0.0,
    (),
  )


def refusal(
  done: roofline.Work, by_transfer: Sequence[float], peak: float
) -> str | None:
  """Why a layout cannot work well whatever overlaps; None if it can.

  Refused is what keeps the links busy, with one kind of transfer, for longer
  than all products of the step take. Section by section, with C the peak in
  FLOP/s, W the bytes/s of a link in one direction and I = C / 2W the FLOPs that
  one byte of a ring costs (2,550 on a v5p, 5,100 on a v6e, 12,800 on a tpu7x),
  for one forward pass of one layer of experts, in bfloat16:

  - Gathered weights (FSDP). A device multiplies t k rows, k for each of its t
    tokens, and gathers the E / EP experts that it works for: 2 m D F t k FLOPs
    for 2 m D F E / EP bytes over both links of a ring, so that
    t k EP / E > I. MaxText's guide has this with the tokens of a device for
    mixed layouts, but with the 'global batch' for pure FSDP; that is too kind
    by the number of devices, since each of them gathers all weights however
    many share them.
  - Exchange (EP). A row is 2 D bytes each way and 2 m D F FLOPs. On a ring of n
    a byte goes n / 4 links on average and a device has two each way, so V bytes
    take V n / 8W: 2 m F / n > I. With the m = 2 matrices of a GELU expert this
    is the guide's 4 F / EP; a gated one has 6 F / EP. n is the longest side of
    the axis on the torus, not EP, where it covers several sides.
  - Divided widths (TP). One all-reduce of 2 D bytes a token for 2 m D F / TP
    FLOPs: m F / 2 TP > I, the guide's F / TP for m = 2.
  - Pipelines are not built here.

  A step adds up more favourably than a forward pass: products triple, or
  quadruple with recomputation, while exchanges only double (`exchanges`), and
  attention and dense layers count too. So what is refused is hopeless; what
  breaks the rules above in a forward pass is warned of (`warnings`).

  Source: MaxText, docs/guides/optimization/custom_model.md, section "Choose
  efficient sharding strategies"; the times of collectives are those of
  https://jax-ml.github.io/scaling-book/sharding.

  Args:
    done: forecast of a step.
    by_transfer: seconds of each of its transfers, all times.
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
    f'{_WORDS[worst]} outlasts all products: {taken[worst]:.3g} s against'
    f' {products:.3g} s a step; it takes {_WAYS_OUT[worst]}'
  )


def _flops_of_a_byte(kind: str, names, mesh, slice_: Slice, coords) -> float:
  """FLOPs that a device could do while one byte of a collective arrives."""
  group = _group(mesh, names)
  transfer = roofline.Transfer(kind, names, _GIB, 1, group, '')
  seconds, _ = roofline.transfer_seconds(transfer, coords, slice_)
  peak = slice_.chip.peak['bfloat16'] / slice_.chip.devices
  return peak * seconds / _GIB


def warnings(
  slice_: Slice, mesh: Mesh, sizes: memory.Sizes, load: Load
) -> list[str]:
  """Rules of `refusal` that a forward pass of one layer breaks, as sentences.

  With the mesh's real place on the torus: an axis along two rings has twice the
  bandwidth. Where one is broken, that transfer can only hide behind other
  layers' products.
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
  if load.sparse_layers:
    gathered = f'{load.rows_per_expert:,.0f} rows to an expert'
    rule(gathered, load.rows_per_expert, 'all-gather', (FSDP,))
    rows = f'an expert of width {sizes.expert_width:,}'
    rule(rows, m * sizes.expert_width / 2, 'all-to-all', (EXPERT,))
  if sizes.dense_width:
    tokens = f'{sizes.tokens:,} tokens to a dense layer'
    rule(tokens, sizes.tokens, 'all-gather', (FSDP,))
    widths = f'a dense layer of {sizes.dense_width:,} columns'
    rule(widths, m * sizes.dense_width, 'all-reduce', (MODEL,))
  return said
