"""Temporary memory is counted by content, from the compiler's texts."""

from moe.scale import buffers

BUFFERS = """BufferAssignment:
allocation 1: size 4, color 8, page 0, preallocated-temp:
 value: <16 elsewhere.1 @8> (size=4,offset=0): u32[]{:S(8)}
allocation 2: size 64, page 0, parameter 0, shape |f32[16]|:
 value: <17 argument.2{0} @0> (size=64,offset=0): f32[16]{0}
allocation 3: size 100, page 0, preallocated-temp:
 value: <18 rows.3{1} @0> (size=16,offset=0): bf16[2,4]{1,0:T(8,128)}
 value: <19 in_place.4 @0> (size=16,offset=0): bf16[2,4]{1,0:T(8,128)}
 value: <20 gradient.5 @0> (size=48,offset=32): bf16[2,3,4]{1,0:T(8,128)}
 value: <21 hidden.6 @0> (size=40,offset=32): bf16[2,10]{1,0:T(8,128)}
"""
LIFETIMES = """HloLiveRange (max 9):
  BufferLiveRange:
    argument.2{}:0-9
    rows.3{1}:1-4
    in_place.4{}:4-8
    hidden.6{}:2-5
    gradient.5{}:6-7
"""


def test_temporaries_outside_main_memory_do_not_count():
  values = buffers.temporaries(BUFFERS, LIFETIMES)
  assert [v.name for v in values] == [
    'rows.3{1}', 'in_place.4', 'gradient.5', 'hidden.6'
  ]  # fmt: skip
  assert values[2] == ('gradient.5', 'bf16[2,3,4]', (2, 3, 4), 48, 32, 6, 7)


def test_memory_of_gradients_and_of_rows_is_counted_apart():
  values = buffers.temporaries(BUFFERS, LIFETIMES)
  found = buffers.account(values, 100, lambda v: sorted(v.dims) == [2, 3, 4])
  # At times 6 and 7 the gradient (48 bytes) and a row (16) are live. At time 4
  # the hidden layer (40) and the row are live. The row is changed in place, so
  # its old and its new value share 16 bytes.
  assert found['weight_sized_bytes'] == 48
  assert found['row_bytes'] == 56
  assert found['temp_bytes'] == 100
  assert found['gap_bytes'] == 100 - 64
  assert found['at_peak'] == [
    {'name': 'gradient.5', 'shape': 'bf16[2,3,4]', 'bytes': 48},
    {'name': 'in_place.4', 'shape': 'bf16[2,4]', 'bytes': 16},
  ]
