"""The text of a small compiled program for tests."""

# A loop of 3 iterations contains a loop of 4 iterations. The inner loop
# multiplies [2, 8] by [8, 16]. Its bound is in the tuple that it carries, where
# XLA puts the values that are constant in a loop.
LOOPS = """HloModule step, is_scheduled=true

%inner_cond (p.0: (s32[], s32[])) -> pred[] {
  %p.0 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  %n.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=1
  ROOT %lt.0 = pred[]{:T(512)} compare(%i.0, %n.0), direction=LT
}

%product (a: bf16[2,8], b: bf16[8,16]) -> bf16[2,16] {
  %a = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[2,16]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="jit(f)/dot"}
}

%inner (p.1: (s32[], s32[])) -> (s32[], s32[]) {
  %p.1 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %n.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=1
  %one.1 = s32[]{:T(128)} constant(1)
  %next.1 = s32[]{:T(128)} add(%i.1, %one.1)
  %x = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} constant({...})
  %w = bf16[8,16]{1,0:T(8,128)(2,1)} constant({...})
  %f = bf16[2,16]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%product
  ROOT %t.1 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%next.1, %n.1)
}

%outer_cond (p.2: (s32[])) -> pred[] {
  %p.2 = (s32[]{:T(128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %n.2 = s32[]{:T(128)} constant(6)
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.2, %n.2), direction=LT
}

%outer (p.3: (s32[])) -> (s32[]) {
  %p.3 = (s32[]{:T(128)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %two = s32[]{:T(128)} constant(2)
  %next.3 = s32[]{:T(128)} add(%i.3, %two)
  %zero.3 = s32[]{:T(128)} constant(0)
  %four = s32[]{:T(128)} constant(4)
  %init.3 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%zero.3, %four)
  %while.3 = (s32[]{:T(128)}, s32[]{:T(128)}) while(%init.3), condition=%inner_cond, body=%inner
  ROOT %t.3 = (s32[]{:T(128)}) tuple(%next.3)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x.4 = f32[4]{0:T(128)} parameter(0)
  %zero.4 = s32[]{:T(128)} constant(0)
  %init.4 = (s32[]{:T(128)}) tuple(%zero.4)
  %while.4 = (s32[]{:T(128)}) while(%init.4), condition=%outer_cond, body=%outer
  ROOT %y.4 = f32[4]{0:T(128)} copy(%x.4)
}
"""  # noqa: E501
