"""The device mesh: axis names, their order, and how many devices each has."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from moe import bounds

STAGE = 'stage'
DATA = 'data'
FSDP = 'fsdp'
EXPERT = 'expert'
CONTEXT = 'context'
MODEL = 'model'
# The first axes have the slowest links. Devices along the last axes are
# neighbours.
AXES = (STAGE, DATA, FSDP, EXPERT, CONTEXT, MODEL)


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Number of devices along each mesh axis; along an unused axis it is 1.

  Attributes:
    data: number of replicas of the parameters. Here, or for one of the other
      axes, -1 stands for all devices that are left.
    fsdp: number of parts into which parameters are divided; a layer gathers
      them before use.
    expert: number of parts into which the experts are divided.
    context: number of parts into which sequences are divided.
    model: number of parts into which heads and feed-forward width are divided.
    num_slices: number of TPU slices; the network of the data centre connects
      them. The first axis with several devices spans the slices; it must be
      data or fsdp. Devices that are not TPUs are divided into equal slices in
      their order.
  """

  data: int = -1
  fsdp: int = 1
  expert: int = 1
  context: int = 1
  model: int = 1
  num_slices: int = 1

  def __post_init__(self):
    meaning = 'slices that a network joins'
    bounds.at_least(1, 'NUM_SLICES', self.num_slices, meaning)
    sizes = self.axes
    for axis, size in sizes.items():
      if size != -1:
        meaning = 'devices of a mesh axis, or -1 for all that are left'
        bounds.at_least(1, axis, size, meaning)
    if list(sizes.values()).count(-1) > 1:
      raise ValueError(
        'at most one mesh axis may be -1, which means all remaining devices,'
        f' got {sizes}: give the others a number.'
      )

  @property
  def axes(self) -> dict[str, int]:
    """The sizes by axis, without the number of slices."""
    sizes = dataclasses.asdict(self)
    del sizes['num_slices']
    return sizes

  @property
  def fixed(self) -> int:
    """The product of all sizes that are not -1."""
    return math.prod(size for size in self.axes.values() if size != -1)

  def sizes(self, num_devices: int) -> tuple[int, ...]:
    """The sizes of all axes in the order of `AXES`, with -1 replaced.

    Raises:
      ValueError: if the product of the sizes is not `num_devices`.
    """
    given = (1, *self.axes.values())
    if given.count(-1) == 1 and num_devices % self.fixed == 0:
      left = num_devices // self.fixed
      given = tuple(left if s == -1 else s for s in given)
    if math.prod(given) != num_devices:
      raise ValueError(self._refusal(num_devices))
    return given

  def _refusal(self, num_devices: int) -> str:
    """Says why the axes do not fit the devices, and what to set."""
    axes, fitted = self.axes, self.fitted(num_devices).axes
    # An axis of size -1 takes all devices that are left, so it stays -1.
    changes = {a: fitted[a] for a in axes if axes[a] not in (-1, fitted[a])}
    shown = lambda sizes, before='': ' '.join(
      f'{before}MESH_{axis.upper()}={size}' for axis, size in sizes.items()
    )
    fixed = self.fixed
    multiple = 'a multiple of ' * (-1 in axes.values())
    return (
      f'the mesh needs {multiple}{fixed} devices, got {num_devices} for'
      f' {shown({a: n for a, n in axes.items() if n != 1})}: add'
      f' {shown(changes, "--gin.")} for these devices, or set the environment'
      f' variable JAX_NUM_CPU_DEVICES={fixed} for so many on a CPU.'
    )

  def fitted(self, num_devices: int, num_slices: int = 1) -> 'MeshShape':
    """The shape for evaluation or sampling on another number of devices.

    A run that was trained on 8 devices can be scored on 1 or on 64. The axes
    take devices in the order expert, model, fsdp, data. The new size of an axis
    is the greatest common divisor of its old size and the number of devices
    that are left, so an array that can be divided in training can be divided
    here. Remaining devices go to the axis of size -1, or else to data. Context
    gets size 1, because sampling makes one token at a time, which cannot be
    divided.

    With the number of devices of training, parameters have the shardings of
    training, unless training used context.
    """
    sizes, left = {CONTEXT: 1}, num_devices
    for axis in (EXPERT, MODEL, FSDP, DATA):
      sizes[axis] = math.gcd(getattr(self, axis), left)  # gcd(-1, left) is 1.
      left //= sizes[axis]
    takers = [a for a in (EXPERT, MODEL, FSDP) if getattr(self, a) == -1]
    sizes[takers[0] if takers else DATA] *= left
    return MeshShape(**sizes, num_slices=num_slices)

  def spanning(self, num_devices: int) -> str | None:
    """The axis that spans the slices; None if there is one slice.

    Raises:
      ValueError: as for `sizes`, or if no axis can span the slices.
    """
    n = self.num_slices
    if n == 1:
      return None
    used = [
      (axis, size)
      for axis, size in zip(AXES, self.sizes(num_devices), strict=True)
      if size > 1
    ]
    axis, size = used[0] if used else (DATA, 1)
    if axis not in (DATA, FSDP) or size % n:
      raise ValueError(
        f'NUM_SLICES={n} must divide MESH_DATA, or MESH_FSDP if MESH_DATA=1,'
        f' since the other axes send too much for the network between slices,'
        f' got MESH_{axis.upper()}={size}: set MESH_DATA={n}, or change'
        ' NUM_SLICES.'
      )
    return axis


def make_mesh(shape: MeshShape, devices: Sequence | None = None) -> Mesh:
  """Makes a mesh with neighbouring devices along each axis.

  Each slice gets its own mesh. The axis that spans the slices joins these
  meshes, as in `mesh_utils.create_hybrid_device_mesh`. We do not call that
  function, because it supports slices of TPUs only.

  Args:
    shape: number of devices per axis, and number of slices.
    devices: the devices to use, by default all.

  Raises:
    ValueError: if the product of the axes is not the number of devices, if the
      devices do not form this number of equal slices, or if no axis can span
      the slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = list(shape.sizes(len(devices)))
  slices = slices_of(devices, shape.num_slices)
  spanning = shape.spanning(len(devices))
  at = AXES.index(spanning or DATA)
  sizes[at] //= len(slices)
  # A mesh axis may need a part of a physical axis: on a torus of 8x16x16
  # devices, an axis of 512 devices uses 2 of 8 devices along the first physical
  # axis.
  grids = [
    mesh_utils.create_device_mesh(
      sizes, devices=part, allow_split_physical_axes=True
    )
    for part in slices
  ]
  grid = np.concatenate(grids, axis=at)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slices_of(devices: Sequence, num_slices: int) -> list[list]:
  """The devices of each slice.

  Raises:
    ValueError: if TPUs do not belong to `num_slices` equal slices, or if
      `num_slices` does not divide the number of other devices.
  """
  size, rest = divmod(len(devices), num_slices)
  parts = [devices[i * size : (i + 1) * size] for i in range(num_slices)]
  numbers = _slice_numbers(devices)
  if numbers:
    parts = [
      [d for d, number in zip(devices, numbers, strict=True) if number == i]
      for i in sorted(set(numbers))
    ]
  if rest or len(parts) != num_slices or any(len(p) != size for p in parts):
    raise ValueError(
      f'NUM_SLICES={num_slices} must be the number of slices of the'
      f' {len(devices)} devices, got {len(parts)} of'
      f' {sorted({len(p) for p in parts})} devices: set NUM_SLICES.'
    )
  return parts


def count_slices(devices: Sequence) -> int:
  """The number of slices of TPUs; 1 for other devices."""
  return len(set(_slice_numbers(devices))) or 1


def _slice_numbers(devices: Sequence) -> list[int]:
  """The slice number of each TPU; [] for other devices."""
  if devices[0].platform != 'tpu':
    return []
  return [getattr(device, 'slice_index', 0) for device in devices]
