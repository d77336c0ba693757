from types import SimpleNamespace

import numpy as np
import pytest

from moe.scale import roofline, topology
from moe.scale.collectives import Transfer
from moe.scale.work import StepWork


@pytest.fixture(scope='module')
def cube():
  """(v5p:4x4x8, coordinates [128, 4]); the last torus dim varies fastest."""
  slice_ = topology.parse('v5p:4x4x8')
  grid = np.indices(slice_.shape).reshape(3, -1).T
  return slice_, np.concatenate([grid, np.zeros((128, 1), int)], axis=1)


def seconds(kind, group, num_bytes, cube):
  slice_, coords = cube
  transfer = Transfer(kind, ('expert',), num_bytes, 1, tuple(group), '')
  taken, busy = roofline.transfer_seconds(transfer, coords, slice_)
  return taken, busy


def test_a_gather_around_one_ring_by_hand(cube):
  # The 8 chips along z are a ring. A chip receives 7/8 of 1.8 GB over two links
  # of 90 GB/s in 8.75 ms. A message passes at most 4 links, each in 1e-6 s.
  taken, busy = seconds('all-gather', range(8), 1.8e9, cube)
  assert busy == {2: pytest.approx(8.75e-3)}
  assert taken == pytest.approx(8.75e-3 + 4e-6)


def test_a_gather_uses_all_rings_of_its_group_at_once(cube):
  # The group extends along y and z, so a chip receives 31/32 of 1.8 GB over
  # four links.
  _, busy = seconds('all-gather', range(32), 1.8e9, cube)
  assert busy == {d: pytest.approx(31 / 32 * 5e-3) for d in (1, 2)}


def test_an_all_reduce_takes_as_long_as_a_scatter_and_a_gather(cube):
  once, _ = seconds('reduce-scatter', range(8), 1e9, cube)
  twice, _ = seconds('all-reduce', range(8), 1e9, cube)
  assert twice == pytest.approx(2 * once)


def test_an_all_to_all_is_bound_by_the_longest_ring(cube):
  # The ring of 8 takes bytes x 8 / (8 x 90 GB/s) seconds. The ring of 4 takes
  # half as long.
  _, busy = seconds('all-to-all', range(32), 0.9e9, cube)
  assert busy == {1: pytest.approx(5e-3), 2: pytest.approx(10e-3)}


def test_every_second_chip_of_a_ring_shares_its_links_with_the_others(cube):
  _, near = seconds('all-to-all', range(0, 4), 1e9, cube)
  _, every_second = seconds('all-to-all', range(0, 8, 2), 1e9, cube)
  # In units of bytes / link bandwidth, an all-to-all of n chips takes n / 4 on
  # a line and n / 8 on a ring. So a group on a line of 4 takes 4 / 4. Two
  # groups of 4 that share a ring take 2 x 4 / 8, which is as long.
  assert every_second[2] == pytest.approx(near[2])


def test_half_a_ring_is_a_line(cube):
  slice_, coords = cube
  (span,) = roofline.spans(coords[:4], slice_)
  assert (span.members, span.stride, span.is_ring) == (4, 1, False)
  (span,) = roofline.spans(coords[:8], slice_)
  assert span.is_ring


class Device:
  def __init__(self, place):
    self.coords, self.core_on_chip = tuple(place), 0


def test_a_step_takes_its_busiest_resource_with_overlap_else_the_sum(cube):
  slice_, coords = cube
  devices = [Device(c[:3]) for c in coords]
  transfer = Transfer('all-gather', ('z',), int(1.8e9), 2, tuple(range(8)), '')
  done = StepWork(
    459e12, 2.765e12 / 2, ((459e12, 0, 1), (0, 2.765e12 / 2, 1)), (transfer,),
    0.0, 0.0, (),
  )  # fmt: skip
  made = roofline.estimate(done, devices, slice_)
  # Products take 1 s, memory traffic 0.5 s, and two gathers take 8.75 ms each.
  assert made.full_overlap == pytest.approx(1.0)
  assert made.bound == 'matrix unit'
  assert made.no_overlap == pytest.approx(1.5 + 2 * (8.75e-3 + 4e-6))


def test_slices_share_the_network_by_chips(cube):
  # A chip of v5p has 6.25 GB/s on the network. It sends half of 1 GB to the
  # other slice, and half of the sum back.
  slice_, coords = cube
  transfer = Transfer('all-reduce', ('data',), 1e9, 3, (0, 1), '', True)
  taken, busy = roofline.transfer_seconds(transfer, coords, slice_)
  assert taken == pytest.approx(0.16 + roofline.NETWORK_SECONDS)
  assert not busy  # The transfer uses no link of the torus.
  done = StepWork(0.0, 0.0, (), (transfer,), 0.0, 0.0, ())
  devices = [SimpleNamespace(coords=c[:3], core_on_chip=0) for c in coords]
  found = roofline.estimate(done, devices, slice_)
  assert found.bound == 'network'
  assert found.no_overlap == found.full_overlap == pytest.approx(3 * taken)
