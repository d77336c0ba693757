"""Published figures of chips, and slices of chips for compiling without a TPU.

Sources, read in November 2026:
TPUs: the pages v4, v5e, v5p, v6e and tpu7x of https://cloud.google.com/tpu/docs
give HBM bandwidth, peak FLOP/s, the largest slice on offer, and the data
centre's network (v5e: 6.4 Tbit/s for a pod of 256; v5p: 50 Gbit/s for a chip).
The fp8 peaks of v5p and v6e come from the page of tpu7x, which compares them;
the int8 peak of v5p comes from Google's announcement of December 2023. A figure
that no page gives is 0 or comes from https://jax-ml.github.io/scaling-book/tpus.
That book also gives the measured bandwidth of one link in one direction: 90
GB/s for v5p, v6e and tpu7x, 45 GB/s for v4 and v5e, nine tenths of the pages'
figures. `hbm_bytes` is the limit that the compiler names when a program does
not fit.
GPUs: NVIDIA's data sheets give dense peaks (without sparsity) and NVLink in one
direction; each GPU has one adapter, of 200 Gbit/s for an A100, else of 400.
"""

import dataclasses
import math
import os
import re

from moe import bounds

GIB = 2**30
ENVIRONMENT = {
  # This machine has no TPU, so libtpu must not ask a metadata server for it.
  'TPU_SKIP_MDS_QUERY': '1',
  # Compiling uses no chip, so several processes may load libtpu at once.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip; a chip can consist of several JAX devices.

  Attributes:
    kind: `device_kind` that JAX reports.
    peak: dense FLOP/s by dtype; 0 where none is published.
    hbm_bytes: bytes of memory that a program can use.
    hbm_bandwidth: bytes/s.
    link_bandwidth: bytes/s of one link in one direction.
    torus_dims: number of torus dims; 0 where a switch joins the chips.
    wraps_at: a torus dim wraps around if its length is a multiple of this.
    largest: shape of the largest slice; for a switch, the chips that share it.
    network_bandwidth: bytes/s of one chip in one direction, between slices or
      switches.
    devices: JAX devices per chip.
    compiler: libtpu's (name, chip configuration); None for GPUs.
  """

  kind: str
  peak: dict[str, float]
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  torus_dims: int
  wraps_at: int
  largest: tuple[int, ...]
  network_bandwidth: float
  devices: int = 1
  compiler: tuple[str, str] | None = None


def _peak(
  bfloat16: float, int8: float = 0.0, fp8: float = 0.0
) -> dict[str, float]:
  return {'bfloat16': bfloat16, 'int8': int8, 'fp8': fp8}


CHIPS = {
  'v4': Chip(
    'TPU v4', _peak(275e12, 275e12), int(30.75 * GIB), 1.228e12, 4.5e10,
    3, 4, (16, 16, 16), 6.25e9, 1, ('v4', 'megacore'),
  ),
  'v5e': Chip(
    'TPU v5 lite', _peak(197e12, 393e12), int(15.75 * GIB), 8.19e11, 4.5e10,
    2, 16, (16, 16), 3.125e9, 1, ('v5e', 'default'),
  ),
  'v5p': Chip(
    'TPU v5', _peak(459e12, 918e12, 459e12), int(95.73 * GIB), 2.765e12, 9e10,
    3, 4, (16, 16, 24), 6.25e9, 1, ('v5', 'megacore'),
  ),
  'v6e': Chip(
    'TPU v6 lite', _peak(918e12, 1836e12, 918e12), int(31.24 * GIB), 1.638e12,
    9e10, 2, 16, (16, 16), 12.5e9, 1, ('v6e', 'default'),
  ),
  'tpu7x': Chip(
    'TPU7x', _peak(2307e12, 0.0, 4614e12), 2 * int(94.74 * GIB), 7.37e12,
    9e10, 3, 4, (16, 24, 24), 12.5e9, 2, ('tpu7x', 'default'),
  ),
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB', _peak(312e12, 624e12), 80 * 10**9, 2.039e12, 3e11,
    0, 0, (8,), 25e9,
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3', _peak(989e12, 1979e12, 1979e12), 80 * 10**9,
    3.35e12, 4.5e11, 0, 0, (8,), 50e9,
  ),
  'h200': Chip(
    'NVIDIA H200', _peak(989e12, 1979e12, 1979e12), 141 * 10**9, 4.8e12, 4.5e11,
    0, 0, (8,), 50e9,
  ),
  'b200': Chip(
    'NVIDIA B200', _peak(2250e12, 4500e12, 4500e12), 180 * 10**9, 7.7e12, 9e11,
    0, 0, (8,), 50e9,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips of one kind, joined by a torus or a switch.

  Several slices of this shape may be joined by the data centre's network.

  Attributes:
    name: key of `CHIPS`.
    shape: chips along each dim of the torus; for GPUs, their number.
    num_slices: number of slices.
  """

  name: str
  shape: tuple[int, ...]
  num_slices: int = 1

  @property
  def chip(self) -> Chip:
    """Published figures of the slice's chips."""
    return CHIPS[self.name]

  @property
  def num_chips(self) -> int:
    """The number of chips of all slices."""
    return math.prod(self.shape) * self.num_slices

  @property
  def num_devices(self) -> int:
    """The number of JAX devices."""
    return self.num_chips * self.chip.devices

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Whether each dim of the torus closes into a ring."""
    at = self.chip.wraps_at
    return tuple(d % at == 0 and d > 1 for d in self.shape)

  def __str__(self) -> str:
    several = f'{self.num_slices} x ' if self.num_slices > 1 else ''
    return f'{several}{self.name}:{"x".join(map(str, self.shape))}'


def parse(text: str, num_slices: int = 1) -> Slice:
  """Reads the name of a slice, such as 'v5p:8x16x16'.

  Args:
    text: the name.
    num_slices: number of such slices.

  Raises:
    ValueError: if there is no such chip or shape, or `num_slices` is below 1.
  """
  bounds.at_least(1, '--slices', num_slices, 'slices that a network joins')
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', text)
  if not found or found[1] not in CHIPS:
    raise ValueError(
      f'--topology={text} must be a chip and a shape such as v5p:8x16x16, a'
      f' chip of {", ".join(CHIPS)}.'
    )
  chip = CHIPS[found[1]]
  shape = tuple(int(d) for d in found[2].split('x'))
  if not chip.torus_dims:
    if len(shape) != 1 or min(shape) < 1:
      raise ValueError(
        f'--topology={text} must be a number of GPUs, such as {found[1]}:256.'
      )
    return Slice(found[1], shape, num_slices)
  if len(shape) != chip.torus_dims or min(shape) < 1:
    raise ValueError(
      f'--topology={text} must have {chip.torus_dims} dims, as the torus of'
      f' {found[1]} has, such as {found[1]}:'
      f'{"x".join("4" for _ in range(chip.torus_dims))}.'
    )
  if any(a > b for a, b in zip(sorted(shape), chip.largest, strict=True)):
    raise ValueError(
      f'--topology={text} must lie within the largest slice,'
      f' {"x".join(map(str, chip.largest))}: choose a smaller one.'
    )
  return Slice(found[1], shape, num_slices)


def devices(wanted: Slice) -> list:
  """JAX devices of a slice, for which programs are compiled but cannot run.

  The libtpu package brings the compiler; no TPU is needed.

  Raises:
    ValueError: if the chips are GPUs, libtpu is missing, or libtpu refuses the
      shape.
  """
  chip = wanted.chip
  if chip.compiler is None:
    raise ValueError(
      f'--topology={wanted} must be TPUs: only a machine with {chip.kind} can'
      ' compile for it. Leave --topology out for a plan that holds anywhere.'
    )
  from jax.experimental import topologies

  config_name, chip_config = chip.compiler
  missing = (1,) * (3 - len(wanted.shape))
  added = {k: v for k, v in ENVIRONMENT.items() if k not in os.environ}
  os.environ.update(added)
  try:
    described = topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{config_name}:{"x".join(map(str, wanted.shape))}',
      chip_config_name=chip_config,
      chips_per_host_bounds=(2, 2, 1),
      num_slices=wanted.num_slices,
      wrap=wanted.wraps + (False,) * len(missing),
    )
  except Exception as error:
    message = str(error).strip().split('\n')[0]
    raise ValueError(
      f'--topology={wanted} must be a slice that libtpu knows, but libtpu says:'
      f' {message}. If libtpu is missing, install launch/requirements.txt;'
      ' otherwise choose a shape in steps of 2x2.'
    ) from error
  finally:
    # If these variables stayed, JAX would treat this process as a part of a TPU
    # pod.
    for name in added:
      del os.environ[name]
  return list(described.devices)


def kind_of(device_kind: str) -> str:
  """Maps all names of a kind of chip to one of them.

  JAX has two names for a v5p: one on a TPU pod, one for compiling without TPU.
  """
  return {'TPU v5p': 'TPU v5'}.get(device_kind, device_kind)


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a JAX device; None if unknown, as for CPUs."""
  for chip in CHIPS.values():
    if kind_of(device_kind) == chip.kind:
      return chip.peak['bfloat16'] / chip.devices
  return None
