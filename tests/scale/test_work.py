import pytest

from moe.scale import hlo, work

MESH = {'data': 2, 'expert': 4}

RAGGED = """HloModule r

ENTRY %main (p: f32[]) -> f32[] {
  %rows = bf16[40,16]{1,0} parameter(0)
  %room = bf16[62,16]{1,0} parameter(1)
  %start = s32[4]{0} parameter(2)
  ROOT %moved = bf16[62,16]{1,0} ragged-all-to-all(%rows, %room, %start, %start, %start, %start), replica_groups={{0,1,2,3},{4,5,6,7}}
}
"""  # noqa: E501


def test_a_ragged_exchange_sends_its_rows_and_not_its_buffer():
  # A device sends at most 40 rows of 16 numbers; the buffer has 62 rows. 3/4 of
  # the 40 rows go to the other 3 of 4 devices.
  (transfer,) = work.count(hlo.parse(RAGGED), MESH).transfers
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
  (transfer,) = work.count(hlo.parse(OFFLOADED), MESH).transfers
  assert (transfer.kind, transfer.axes) == ('all-gather', ('expert',))
  assert transfer.bytes == 32 * 16 * 2


def test_a_copy_on_a_sparse_core_reads_and_writes_once():
  text = OFFLOADED.replace('bf16[32,16]', 'bf16[8,16]')
  text = text.replace('all-gather(%a)', 'copy(%a)')
  done = work.count(hlo.parse(text), MESH)
  assert done.bytes == 2 * 8 * 16 * 2 and not done.transfers


# Each device of a slice gives 512 numbers to its partner in the other slice.
ACROSS = """HloModule a

ENTRY %main (p: f32[512]) -> f32[512] {
  %p = f32[512]{0} parameter(0)
  %after = token[] after-all()
  %sent = (f32[512]{0}, u32[], token[]) send(%p, %after), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="KIND"}
  %done = token[] send-done(%sent), channel_id=1, is_host_transfer=true
  ROOT %q = f32[512]{0} copy(%p)
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('written', 'kind', 'moved'),
  [
    # A device sends half of its 2048 bytes, and half of the sum back.
    ('ALL_REDUCE', 'all-reduce', 2048),
    ('ALL_GATHER', 'all-gather', 2048),
    ('REDUCE_SCATTER', 'reduce-scatter', 1024),
    ('ONE_TO_ONE', 'collective-permute', 2048),
  ],
)
def test_an_exchange_between_two_slices_is_counted(written, kind, moved):
  module = hlo.parse(ACROSS.replace('KIND', written))
  (transfer,) = work.count(module, MESH, ('data', 2)).transfers
  assert (transfer.kind, transfer.axes) == (kind, ('data',))
  assert transfer.is_network and transfer.moved == moved
  assert not work.count(module, MESH).transfers
