"""What a step would do on a layout, before anything is compiled.

The same account as `roofline.work` gives of a compiled program, made from sizes
alone, for choosing among hundreds of layouts.
"""

import dataclasses
import math

import jax

from moe import axes
from moe.parallel.mesh import CONTEXT, DATA, EXPERT, FSDP, MODEL
from moe.scale import cost, memory, roofline
from moe.scale.topology import Chip
from moe.types import PyTree

_HALF = 2


@dataclasses.dataclass(frozen=True)
class Load:
  """What goes through a device's links and products.

  Attributes:
    flops: executed in a step by one device.
    exchanged: bytes of rows that a device sends to experts, each time.
    sparse_layers: layers with an exchange.
    d_model: D.
    num_layers: layers.
  """

  flops: float
  exchanged: int
  sparse_layers: int
  d_model: int
  num_layers: int


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

  A parameter's width is gathered where 'embed' divides it; the dims of experts,
  heads and feed-forward widths stay divided in products.
  """
  found = {}
  names = jax.tree.leaves(logical_axes, is_leaf=lambda a: isinstance(a, tuple))
  for leaf, logical in zip(jax.tree.leaves(params), names, strict=True):
    spec = list(leaf.sharding.spec) + [None] * len(logical)
    over, kept, layers = (), 1, 1
    for axis, dim, entry in zip(logical, leaf.shape, spec, strict=False):
      if axis == axes.EMBED:
        over += _axes(entry)
      else:
        kept *= math.prod(leaf.sharding.mesh.shape[a] for a in _axes(entry))
      if axis == axes.LAYERS:
        layers = dim
    if over:
      whole = leaf.size // layers // kept * _HALF
      found[over, layers] = found.get((over, layers), 0) + whole
  return found


def work(
  abstract, logical_axes: PyTree, mesh, sizes: memory.Sizes, load: Load
) -> roofline.Work:
  """The account of a step.

  Args:
    abstract: TrainState of shapes with shardings on the mesh.
    logical_axes: of the parameters.
    mesh: of devices that need not exist.
    sizes: of one microbatch on one device.
    load: of one step on one device.
  """
  n = sizes.num_microbatches
  transfers = []

  def add(kind, names, num_bytes, times):
    names = tuple(a for a in names if mesh.shape[a] > 1)
    if names and num_bytes and times:
      group = _group(mesh, names)
      transfers.append(
        roofline.Transfer(kind, names, int(num_bytes), times, group, '')
      )

  # Out and back, forward and backward, and once more where the block is redone.
  passes = 6 if sizes.remat == 'full' else 4
  add('all-to-all', (EXPERT,), load.exchanged, passes * load.sparse_layers * n)
  for (over, layers), whole in _gathers(abstract.params, logical_axes).items():
    add('all-gather', over, whole, 2 * layers * n)
    add('reduce-scatter', over, whole, layers * n)
  local = sum(
    math.prod(p.sharding.shard_shape(p.shape))
    for p in jax.tree.leaves(abstract.params)
  )
  # Parameters that the batch axes do not divide have their gradients summed.
  add('all-reduce', (DATA,), local * sizes.grad_bytes, n)
  add('all-gather', (DATA,), local * 4, 1)
  hidden = sizes.tokens * load.d_model * sizes.dtype_bytes
  add('all-reduce', (MODEL,), hidden, 4 * load.num_layers * n)
  add('all-gather', (CONTEXT,), 2 * hidden, 3 * load.num_layers * n)
  period, table = memory.gathered(abstract.params, logical_axes)
  weights = (period * sizes.periods + table) * _HALF
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


def warnings(
  chip: Chip, mesh_shape: dict[str, int], sizes: memory.Sizes
) -> list[str]:
  """Rules of thumb that a layout breaks, as sentences.

  A link pair along one ring carries 1 / intensity bytes per FLOP, intensity
  being peak / (2 x link bandwidth). After MaxText's guide to custom models
  (docs/guides/optimization/custom_model.md).
  """
  intensity = chip.peak['bfloat16'] / (2 * chip.link_bandwidth)
  said = []
  gathered = mesh_shape[FSDP] * mesh_shape[DATA]
  if gathered > 1 and sizes.tokens < intensity:
    said.append(
      f'gathering weights: {sizes.tokens:,} tokens of a device and microbatch'
      f' are fewer than {intensity:,.0f} FLOPs a byte of a ring'
    )
  experts = mesh_shape[EXPERT]
  if experts > 1 and 4 * sizes.expert_width * 2 < intensity:
    said.append(
      f'exchange: experts of width {sizes.expert_width:,} give'
      f' {8 * sizes.expert_width:,} FLOPs for each byte of a row, fewer than'
      f' {intensity:,.0f}'
    )
  model = mesh_shape[MODEL]
  if model > 1 and sizes.dense_width < intensity:
    said.append(
      f'dividing widths by {model}: {sizes.dense_width:,} columns of a device'
      f' are fewer than {intensity:,.0f}'
    )
  return said
