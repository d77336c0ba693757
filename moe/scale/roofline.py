"""Estimates the time of a step on its slice (roofline model).

There are two estimates. Without overlap, each instruction takes as long as its
products or its memory traffic, whichever is longer, and transfers run one after
another. With full overlap, the step takes as long as the busiest resource
works. A measured time lies between the two estimates if a resource that `work`
counts limits the program. `work` does not count the host, and counts only the
memory traffic of the vector units. Slices exchange over the data centre's
network, in which each chip has its share of the bandwidth.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.scale.collectives import Transfer
from moe.scale.topology import Slice
from moe.scale.work import StepWork

# Latency of a message in seconds, for each link on its way.
HOP_SECONDS = 1e-6
# Latency of an exchange between slices in seconds; assumed, not measured.
NETWORK_SECONDS = 1e-4


@dataclasses.dataclass(frozen=True)
class Span:
  """The part of a torus dim along which a device group extends.

  Attributes:
    dim: index of the torus dim.
    members: number of places that the group has along the dim.
    stride: distance between neighbours of the group. It is also the number of
      groups that share each link.
    is_ring: whether the group covers the whole dim and the dim wraps around.
  """

  dim: int
  members: int
  stride: int
  is_ring: bool


def coordinates(devices: Sequence) -> np.ndarray:
  """Coordinates [devices, dims + 1]: place in the torus, then the core."""
  return np.array([[*d.coords, d.core_on_chip] for d in devices])


def spans(group_coords: np.ndarray, slice_: Slice) -> list[Span]:
  """Finds the torus dims along which a group extends, from its coordinates."""
  found = []
  for dim, (length, wraps) in enumerate(
    zip(slice_.shape, slice_.wraps, strict=True)
  ):
    places = np.unique(group_coords[:, dim])
    if len(places) == 1:
      continue
    stride = int(np.gcd.reduce(np.diff(places)))
    is_ring = wraps and len(places) * stride == length
    found.append(Span(dim, len(places), stride, is_ring))
  return found


def transfer_seconds(
  transfer: Transfer, coords: np.ndarray, slice_: Slice
) -> tuple[float, dict[int, float]]:
  """Seconds of one collective, and seconds in which it uses each torus dim.

  Gathers and reductions use all rings of the group at once, in both directions.
  They take bytes / (2 x bandwidth of a link x dims). In an all-to-all over a
  ring of n, a byte travels n / 4 links on average, and a device has two links.
  So a dim takes bytes x n / (8 x bandwidth). If the group is a line instead of
  a ring, both times double, since a line has half the bisection bandwidth. The
  slowest dim sets the time of the collective.

  Args:
    transfer: the collective.
    coords: `coordinates` of all devices.
    slice_: the chips.
  """
  chip = slice_.chip
  if transfer.is_network:
    seconds = transfer.moved * chip.devices / chip.network_bandwidth
    return seconds + NETWORK_SECONDS, {}
  group = coords[list(transfer.group)]
  used = spans(group, slice_)
  # The devices of one chip share its links.
  bandwidth = chip.link_bandwidth / chip.devices
  if not used:
    # Devices of one chip exchange data at the speed of its memory.
    return transfer.moved * chip.devices / chip.hbm_bandwidth, {}
  hops = sum(s.members // 2 if s.is_ring else s.members - 1 for s in used)
  latency = HOP_SECONDS * hops * (2 if transfer.kind == 'all-reduce' else 1)
  if 'all-to-all' in transfer.kind:
    busy = {
      s.dim: transfer.bytes * s.members * s.stride
      / ((8 if s.is_ring else 4) * bandwidth)
      for s in used
    }  # fmt: skip
    return max(busy.values()) + latency, busy
  if transfer.kind == 'collective-permute':
    seconds = transfer.bytes * max(s.stride for s in used) / bandwidth
  else:
    lanes = sum((2 if s.is_ring else 1) / s.stride for s in used)
    seconds = transfer.moved / (bandwidth * lanes)
  return seconds + latency, {s.dim: seconds for s in used}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Estimated seconds of a step.

  Attributes:
    no_overlap: seconds without overlap, see the head of this file.
    full_overlap: seconds with full overlap.
    compute: the part of `no_overlap` for products and memory traffic.
    busy: resource -> seconds in which it works; the resources are 'matrix
      unit', 'HBM', 'network', 'torus x' and so on.
    by_transfer: seconds of each of `StepWork.transfers`, summed over its runs.
  """

  no_overlap: float
  full_overlap: float
  compute: float
  busy: dict[str, float]
  by_transfer: tuple[float, ...]

  @property
  def bound(self) -> str:
    """The busiest resource."""
    return max(self.busy, key=self.busy.get)


def estimate(
  done: StepWork, devices: Sequence, slice_: Slice, dtype: str = 'bfloat16'
) -> Estimate:
  """Estimates the seconds of a step on a slice.

  Args:
    done: the work of one device.
    devices: the devices of one slice in the order of the mesh.
    slice_: the chips.
    dtype: the dtype of the products, which sets the peak FLOP/s.
  """
  chip = slice_.chip
  peak = chip.peak[dtype] / chip.devices
  hbm = chip.hbm_bandwidth / chip.devices
  coords = coordinates(devices)
  busy = {'matrix unit': done.flops / peak, 'HBM': done.bytes / hbm}
  busy |= {f'torus {"xyz"[d]}': 0.0 for d in range(len(slice_.shape))}
  compute = sum(max(f / peak, b / hbm) * n for f, b, n in done.instructions)
  by_transfer = []
  for transfer in done.transfers:
    seconds, dims = transfer_seconds(transfer, coords, slice_)
    by_transfer.append(seconds * transfer.times)
    if transfer.is_network:
      busy['network'] = busy.get('network', 0.0) + seconds * transfer.times
    for dim, taken in dims.items():
      busy[f'torus {"xyz"[dim]}'] += taken * transfer.times
  return Estimate(
    compute + sum(by_transfer),
    max(busy.values()),
    compute,
    busy,
    tuple(by_transfer),
  )
