"""The time of a step on its slice, from products, memory traffic and transfers.

There are two times. Without overlap, each instruction takes the longer of its
products and its memory traffic, and every transfer waits its turn. With full
overlap, the busiest resource sets the time. A measured time lies between the
two where what `work` counts limits the program. The vector units (beyond their
memory traffic) and the host are not counted. A program runs on one slice, whose
chips are joined by the torus: nothing goes over the data centre's network.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.scale.collectives import Transfer
from moe.scale.topology import Slice
from moe.scale.work import Work

# Seconds that a message takes to pass one chip.
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Span:
  """How a group lies along one dim of the torus.

  Attributes:
    dim: index of the torus dim.
    members: places that the group takes there.
    stride: distance of neighbours; as many groups share each link.
    is_ring: whether the group takes the whole of a dim that wraps around.
  """

  dim: int
  members: int
  stride: int
  is_ring: bool


def coordinates(devices: Sequence) -> np.ndarray:
  """Places [devices, dims] in the torus, the core on the chip last."""
  return np.array([[*d.coords, d.core_on_chip] for d in devices])


def spans(group_coords: np.ndarray, slice_: Slice) -> list[Span]:
  """The dims of the torus that a group of devices uses."""
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
  """Seconds of one collective, and seconds that it keeps each torus dim busy.

  Gathers and reductions run around all rings of the group at once, in both
  directions: they take bytes / (2 x bandwidth of a link x dims), and twice that
  along a line. In an all-to-all over a ring of n a byte travels n / 4 links on
  average and a device has two of them, so that a dim takes
  bytes x n / (8 x bandwidth), and twice that along a line (bisection); the
  longest dim sets the time.

  Args:
    transfer: the collective.
    coords: places of all devices, as `coordinates` gives them.
    slice_: the chips.
  """
  chip = slice_.chip
  group = coords[list(transfer.group)]
  used = spans(group, slice_)
  # Devices of one chip share its links.
  bandwidth = chip.link_bandwidth / chip.devices
  if not used:
    # Within a chip a transfer is as fast as the memory.
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
  """Seconds of a step.

  Attributes:
    no_overlap: seconds without overlap, see the head of this file.
    full_overlap: seconds with full overlap, likewise.
    compute: the part of `no_overlap` that products or memory traffic take.
    busy: resource -> seconds in which it works: 'matrix unit', 'HBM', 'torus x'
      and so on.
    by_transfer: seconds of each of `Work.transfers`, all its times together.
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
  done: Work, devices: Sequence, slice_: Slice, dtype: str = 'bfloat16'
) -> Estimate:
  """Seconds of a step on a slice.

  Args:
    done: what a device does.
    devices: the devices in the order of the mesh.
    slice_: the chips.
    dtype: the type of the products, which sets the peak FLOP/s.
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
    for dim, taken in dims.items():
      busy[f'torus {"xyz"[dim]}'] += taken * transfer.times
  return Estimate(
    compute + sum(by_transfer),
    max(busy.values()),
    compute,
    busy,
    tuple(by_transfer),
  )
