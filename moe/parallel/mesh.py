"""The device mesh: axis names, their order, and how many devices each has."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from moe import bounds

STAGE = 'stage'
DATA = 'data'
FSDP = 'fsdp'
EXPERT = 'expert'
CONTEXT = 'context'
MODEL = 'model'
# Axes with the slowest links come first. Devices along the last axes are
# neighbours.
AXES = (STAGE, DATA, FSDP, EXPERT, CONTEXT, MODEL)


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices per mesh axis; all axes exist, and unused ones have one device.

  Attributes:
    data: number of replicas of the parameters; -1 takes all devices that the
      other axes leave.
    fsdp: number of parts of the parameters, which are gathered before use.
    expert: number of parts of the experts.
    context: number of parts of the sequence.
    model: number of parts of heads and feed-forward width.
  """

  data: int = -1
  fsdp: int = 1
  expert: int = 1
  context: int = 1
  model: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for axis, size in sizes.items():
      if size != -1:
        meaning = 'devices of a mesh axis, or -1 for all that are left'
        bounds.at_least(1, axis, size, meaning)
    if list(sizes.values()).count(-1) > 1:
      raise ValueError(
        'at most one mesh axis may be -1, which means all remaining devices,'
        f' got {sizes}: give the others a number.'
      )

  def sizes(self, num_devices: int) -> tuple[int, ...]:
    """Sizes in the order of `AXES`.

    Raises:
      ValueError: if the axes do not multiply to `num_devices`.
    """
    given = (1, self.data, self.fsdp, self.expert, self.context, self.model)
    fixed = math.prod(s for s in given if s != -1)
    if given.count(-1) == 1 and fixed > 0 and num_devices % fixed == 0:
      given = tuple(num_devices // fixed if s == -1 else s for s in given)
    if math.prod(given) != num_devices:
      raise ValueError(self._refusal(num_devices))
    return given

  def _refusal(self, num_devices: int) -> str:
    """The message that says why the axes do not fit, and what to set."""
    axes = dataclasses.asdict(self)
    fitted = dataclasses.asdict(self.fitted(num_devices))
    # An axis of -1 takes the devices that the others leave, so it stays -1.
    changes = {a: fitted[a] for a in axes if axes[a] not in (-1, fitted[a])}
    shown = lambda sizes, before='': ' '.join(
      f'{before}MESH_{axis.upper()}={size}' for axis, size in sizes.items()
    )
    fixed = math.prod(size for size in axes.values() if size != -1)
    multiple = 'a multiple of ' * (-1 in axes.values())
    return (
      f'the mesh needs {multiple}{fixed} devices, got {num_devices} for'
      f' {shown({a: n for a, n in axes.items() if n != 1})}: add'
      f' {shown(changes, "--gin.")} for these devices, or set the environment'
      f' variable JAX_NUM_CPU_DEVICES={fixed} for so many on a CPU.'
    )

  def fitted(self, num_devices: int) -> 'MeshShape':
    """The shape for evaluation or sampling on another number of devices.

    A run that was trained on eight devices can be scored on one, or on 64. The
    axes take devices in the order expert, model, fsdp, data. Each one takes the
    greatest common divisor of its size and the number of devices left, so an
    array that can be divided in training can be divided here. The devices that
    are left go to the axis with size -1, or else to data. None go to context:
    sampling makes one token at a time, and one token cannot be divided.

    If the number of devices is the same as in training, parameters have the
    same shardings, unless training used context.
    """
    sizes, left = {CONTEXT: 1}, num_devices
    for axis in (EXPERT, MODEL, FSDP, DATA):
      sizes[axis] = math.gcd(getattr(self, axis), left)  # gcd(-1, left) is 1.
      left //= sizes[axis]
    takers = [a for a in (EXPERT, MODEL, FSDP) if getattr(self, a) == -1]
    sizes[takers[0] if takers else DATA] *= left
    return MeshShape(**sizes)


def make_mesh(shape: MeshShape, devices: Sequence | None = None) -> Mesh:
  """Makes a mesh whose axes follow the links between devices.

  Args:
    shape: devices per axis.
    devices: the devices to use, by default all.

  Raises:
    ValueError: if the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = shape.sizes(len(devices))
  # A mesh axis may need a part of a physical axis: on a torus of 8x16x16, an
  # axis of 512 devices takes a quarter of the first ring.
  grid = mesh_utils.create_device_mesh(
    sizes, devices=devices, allow_split_physical_axes=True
  )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
