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
  # At most 40 rows of 16 numbers are sent into a buffer of 62 rows. Of these,
  # 3/4 go to other devices.
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
