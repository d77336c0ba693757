import numpy as np
import pytest

from moe.scale import hlo, roofline, topology
from moe.scale.roofline import Transfer

MESH = {'data': 2, 'expert': 4}


@pytest.mark.parametrize(
  'written, group',
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', [4, 5, 6, 7]),
    ('replica_groups=[2,4]<=[8]', [4, 5, 6, 7]),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', [1, 5]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [1, 5]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [4, 5, 6, 7]),
    ('source_target_pairs={{0,4},{1,5}}', [1, 5]),
  ],
)
def test_groups_are_read_in_every_way_they_are_written(written, group):
  groups = roofline.groups_of(f'channel_id=1, {written}, x={{1}}', 8)
  assert groups[1].tolist() == group


def test_a_group_is_named_by_the_mesh_axes_along_which_it_differs():
  assert roofline.axes_of([0, 4], MESH) == ('data',)
  assert roofline.axes_of([0, 1, 2, 3], MESH) == ('expert',)
  assert roofline.axes_of(range(8), MESH) == ('data', 'expert')


@pytest.fixture(scope='module')
def cube():
  """v5p:4x4x8 and coordinates [128, 4], the last torus dim fastest."""
  slice_ = topology.parse('v5p:4x4x8')
  grid = np.indices(slice_.shape).reshape(3, -1).T
  return slice_, np.concatenate([grid, np.zeros((128, 1), int)], axis=1)


def seconds(kind, group, num_bytes, cube):
  slice_, coords = cube
  transfer = Transfer(kind, ('expert',), num_bytes, 1, tuple(group), '')
  taken, busy = roofline.transfer_seconds(transfer, coords, slice_)
  return taken, busy


def test_a_gather_around_one_ring_by_hand(cube):
  # 8 chips along z, a ring: 7/8 of 1.8 GB arrive over two links of 90 GB/s,
  # 8.75 ms, and a message passes 4 chips.
  taken, busy = seconds('all-gather', range(8), 1.8e9, cube)
  assert busy == {2: pytest.approx(8.75e-3)}
  assert taken == pytest.approx(8.75e-3 + 4e-6)


def test_a_gather_uses_all_rings_of_its_group_at_once(cube):
  # y and z: 31/32 of 1.8 GB over four links.
  _, busy = seconds('all-gather', range(32), 1.8e9, cube)
  assert busy == {d: pytest.approx(31 / 32 * 5e-3) for d in (1, 2)}


def test_an_all_reduce_takes_as_long_as_a_scatter_and_a_gather(cube):
  once, _ = seconds('reduce-scatter', range(8), 1e9, cube)
  twice, _ = seconds('all-reduce', range(8), 1e9, cube)
  assert twice == pytest.approx(2 * once)


def test_an_all_to_all_is_bound_by_the_longest_ring(cube):
  # Ring of 8: bytes x 8 / (8 x 90 GB/s); ring of 4 half of that.
  _, busy = seconds('all-to-all', range(32), 0.9e9, cube)
  assert busy == {1: pytest.approx(5e-3), 2: pytest.approx(10e-3)}


def test_every_second_chip_of_a_ring_shares_its_links_with_the_others(cube):
  _, near = seconds('all-to-all', range(0, 4), 1e9, cube)
  _, every_second = seconds('all-to-all', range(0, 8, 2), 1e9, cube)
  # A line of 4: 4 / 4; a ring of 4 with two groups on it: 2 x 4 / 8.
  assert every_second[2] == pytest.approx(near[2])


def test_half_a_ring_is_a_line(cube):
  slice_, coords = cube
  (span,) = roofline.spans(coords[:4], slice_)
  assert (span.members, span.stride, span.is_ring) == (4, 1, False)
  (span,) = roofline.spans(coords[:8], slice_)
  assert span.is_ring


RAGGED = """HloModule r

ENTRY %main (p: f32[]) -> f32[] {
  %rows = bf16[40,16]{1,0} parameter(0)
  %room = bf16[62,16]{1,0} parameter(1)
  %start = s32[4]{0} parameter(2)
  ROOT %moved = bf16[62,16]{1,0} ragged-all-to-all(%rows, %room, %start, %start, %start, %start), replica_groups={{0,1,2,3},{4,5,6,7}}
}
"""  # noqa: E501


def test_a_ragged_exchange_sends_its_rows_and_not_the_room_for_them():
  # 40 rows of 16 numbers are sent, at most, into room for 62; 3 of 4 leave.
  (transfer,) = roofline.work(hlo.parse(RAGGED), MESH).transfers
  assert (transfer.kind, transfer.axes) == ('ragged-all-to-all', ('expert',))
  assert transfer.bytes == 40 * 16 * 2
  assert transfer.moved == 40 * 16 * 2 * 3 / 4


OFFLOADED = """HloModule o

%work (a: bf16[8,16]) -> bf16[32,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  ROOT %gathered = bf16[32,16]{1,0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%around (b: bf16[8,16]) -> bf16[32,16] {
  %b = bf16[8,16]{1,0} parameter(0)
  ROOT %wrapped = bf16[32,16]{1,0} custom-call(%b), custom_call_target="offload", called_computations={%work}
}

ENTRY %main (p: f32[]) -> f32[] {
  %p = f32[] parameter(0)
  ROOT %start = ((), (), s32[1]{0}) async-start(), async_execution_thread="sparsecore", calls=%around
}
"""  # noqa: E501


def test_a_collective_that_a_sparse_core_runs_is_found():
  (transfer,) = roofline.work(hlo.parse(OFFLOADED), MESH).transfers
  assert (transfer.kind, transfer.axes) == ('all-gather', ('expert',))
  assert transfer.bytes == 32 * 16 * 2


def test_a_copy_on_a_sparse_core_reads_and_writes_once():
  text = OFFLOADED.replace('bf16[32,16]', 'bf16[8,16]')
  text = text.replace('all-gather(%a)', 'copy(%a)')
  done = roofline.work(hlo.parse(text), MESH)
  assert done.bytes == 2 * 8 * 16 * 2 and not done.transfers


class Device:
  def __init__(self, place):
    self.coords, self.core_on_chip = tuple(place), 0


def test_overlap_leaves_the_busiest_resource_and_without_it_times_add_up(cube):
  slice_, coords = cube
  devices = [Device(c[:3]) for c in coords]
  transfer = Transfer('all-gather', ('z',), int(1.8e9), 2, tuple(range(8)), '')
  done = roofline.Work(
    459e12, 2.765e12 / 2, ((459e12, 0, 1), (0, 2.765e12 / 2, 1)), (transfer,),
    0.0, 0.0, (),
  )  # fmt: skip
  made = roofline.estimate(done, devices, slice_)
  # 1 s of products, half a second of memory, two gathers of 8.75 ms.
  assert made.full_overlap == pytest.approx(1.0)
  assert made.bound == 'matrix unit'
  assert made.no_overlap == pytest.approx(1.5 + 2 * (8.75e-3 + 4e-6))
