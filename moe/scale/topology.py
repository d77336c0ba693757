"""Chips as facts with their source, and slices of them that do not exist here.

Sources, read in November 2026:
TPUs: the pages v4, v5e, v5p, v6e and tpu7x of https://cloud.google.com/tpu/docs
for HBM bandwidth, peak FLOP/s (fp8 of v5p and v6e: the page of tpu7x, which
compares them; int8 of v5p: Google's announcement, December 2023), the largest
slice that can be had, and the data centre's network (v5e: 6.4 Tbit/s a pod of
256; v5p: 50 Gbit/s a chip). What a page does not give is 0 or from
https://jax-ml.github.io/scaling-book/tpus, from which also comes what one link
carries in one direction, as measured: v5p, v6e and tpu7x 90 GB/s, v4 and v5e 45
GB/s, nine tenths of what the pages say. `hbm_bytes` is what the compiler leaves
to a program, as it says when one does not fit.
GPUs: NVIDIA's data sheets, dense, without sparsity; NVLink in one direction,
and one 400 Gbit/s adapter for each GPU.
"""

import dataclasses
import math
import os
import re

GIB = 2**30
ENVIRONMENT = {
  # Neither asks a metadata server for the machine's own TPU, nor warns that
  # there is none.
  'TPU_SKIP_MDS_QUERY': '1',
  # Compiling takes no chip, so several processes may.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do. Per chip, not per JAX device.

  Attributes:
    kind: `device_kind` that JAX reports.
    peak: dense FLOP/s by type; 0 where none is published.
    hbm_bytes: bytes of memory that a program can use.
    hbm_bandwidth: bytes/s.
    link_bandwidth: bytes/s of one link in one direction.
    torus_dims: dims of the torus; 0 where a switch joins the chips.
    wraps_at: a torus dim of a multiple of this wraps around.
    largest: the largest slice; for a switch, the chips that share it.
    network_bandwidth: bytes/s a chip, in one direction, between slices or
      switches.
    devices: JAX devices a chip.
    compiler: libtpu's (name, chip configuration); None where there is none.
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
  """Chips of one kind that are joined.

  Attributes:
    name: key of `CHIPS`.
    shape: chips along each dim of the torus.
  """

  name: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """Facts of the chip."""
    return CHIPS[self.name]

  @property
  def num_chips(self) -> int:
    """Chips in all."""
    return math.prod(self.shape)

  @property
  def num_devices(self) -> int:
    """JAX devices in all."""
    return self.num_chips * self.chip.devices

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Whether each dim of the torus closes into a ring."""
    at = self.chip.wraps_at
    return tuple(d % at == 0 and d > 1 for d in self.shape)

  def __str__(self) -> str:
    return f'{self.name}:{"x".join(map(str, self.shape))}'


def parse(text: str) -> Slice:
  """A slice by name, such as 'v5p:8x16x16'.

  Raises:
    ValueError: for a chip or a shape that does not exist.
  """
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
    return Slice(found[1], shape)
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
  return Slice(found[1], shape)


def devices(wanted: Slice) -> list:
  """JAX devices of a slice to compile for; they can't run anything.

  The libtpu package brings the compiler; no TPU is needed.

  Raises:
    ValueError: for GPUs, without libtpu, and for a shape that it refuses.
  """
  chip = wanted.chip
  if chip.compiler is None:
    raise ValueError(
      f'--topology={wanted} must be TPUs: a program for {chip.kind} is compiled'
      ' where one is. Without --topology the plan holds for any machine.'
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
      num_slices=1,
      wrap=wanted.wraps + (False,) * len(missing),
    )
  except Exception as error:
    message = str(error).strip().split('\n')[0]
    raise ValueError(
      f'--topology={wanted} must be a slice that libtpu knows, but it says:'
      f' {message}. Install the lock (launch/requirements.txt) where it is'
      ' missing, or choose a shape in steps of 2x2.'
    ) from error
  finally:
    # Left there, they would tell this process that it is part of a TPU pod.
    for name in added:
      del os.environ[name]
  return list(described.devices)


def kind_of(device_kind: str) -> str:
  """One name of a `device_kind`: a v5p on a pod has another one than here."""
  return {'TPU v5p': 'TPU v5'}.get(device_kind, device_kind)


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a JAX device; None where unknown, as on CPUs."""
  for chip in CHIPS.values():
    if kind_of(device_kind) == chip.kind:
      return chip.peak['bfloat16'] / chip.devices
  return None
