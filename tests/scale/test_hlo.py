import pytest

from moe.scale import hlo

# A loop of 3, in which another of 4 multiplies [2, 8] by [8, 16]; the inner
# bound is passed in the tuple, as XLA does with what does not change.
TEXT = """HloModule step, is_scheduled=true

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


@pytest.fixture(scope='module')
def module():
  return hlo.parse(TEXT)


def test_bodies_of_loops_within_loops_are_multiplied_out(module):
  # The outer loop counts 0, 2, 4; the inner one runs 4 times in each.
  times = {i.name: n for _, i, n in hlo.executed(module)}
  assert times['while.3'] == 3
  assert times['f'] == 12
  assert times['y.4'] == 1
  assert not hlo.loops_of_unknown_length(module)


def test_an_annotated_trip_count_is_taken():
  text = TEXT.replace(
    'body=%outer', 'body=%outer, backend_config={"known_trip_count":{"n":"5"}}'
  )
  times = {i.name: n for _, i, n in hlo.executed(hlo.parse(text))}
  assert times['f'] == 20


def test_a_loop_of_unknown_length_is_named_and_counts_once():
  module = hlo.parse(TEXT.replace('constant(6)', 'custom-call()'))
  assert hlo.loops_of_unknown_length(module) == ['while.4']
  times = {i.name: n for _, i, n in hlo.executed(module)}
  assert times['f'] == 4


def test_the_product_in_a_fusion_by_hand(module):
  # 2 FLOPs x 2 rows x 8 x 16 columns.
  fusion = module.computations['inner']['f']
  assert hlo.product_flops(module, 'inner', fusion) == 2 * 2 * 8 * 16


def test_dims_memory_and_path_of_an_instruction(module):
  product = module.computations['product']
  assert product['a'].shapes == (hlo.Shape('bf16', (2, 8), space=1),)
  assert product['a'].shapes[0].bytes == 2 * 2 * 8
  assert product['c'].op_name == 'jit(f)/dot'
  assert [s.dims for s in module.computations['outer']['while.3'].shapes] == [
    (),
    (),
  ]


BATCHED = """HloModule b

ENTRY %main (x: bf16[4,32,16], w: bf16[4,16,8]) -> bf16[4,32,8] {
  %x = bf16[4,32,16]{2,1,0} parameter(0)
  %w = bf16[4,16,8]{2,1,0} parameter(1)
  ROOT %c = bf16[4,32,8]{2,1,0} convolution(%x, %w), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""  # noqa: E501


def test_a_batch_dim_written_as_a_window_costs_no_padding():
  # A product for each of 4: 2 x 4 x 32 x 16 x 8, though the window has size 4.
  module = hlo.parse(BATCHED)
  root = module.root('main')
  assert hlo.product_flops(module, 'main', root) == 2 * 4 * 32 * 16 * 8


def kernel(name, operands, result='bf16[4,1024,64]{2,1,0}'):
  """A module that is one custom call, and its FLOPs."""
  lines = [f'  %p.{i} = {o} parameter({i})' for i, o in enumerate(operands)]
  names = ', '.join(f'%p.{i}' for i in range(len(operands)))
  text = '\n'.join([
    'HloModule k', '', 'ENTRY %main (x: f32[]) -> f32[] {', *lines,
    f'  ROOT %{name} = ({result}) custom-call({names}),'
    ' custom_call_target="tpu_custom_call"',
    '}', '',
  ])  # fmt: skip
  module = hlo.parse(text)
  return hlo.product_flops(module, 'main', module.root('main'))


# Tables of 2 x 2 tiles, 4 query heads and 2 key heads of 1024 tokens, 64
# features, 32 of values.
SPLASH = [
  's32[1,2,2]{2,1,0}', 's32[1,2,2]{2,1,0}', 'bf16[4,1024,64]{2,1,0}',
  'bf16[2,1024,64]{2,1,0}', 'bf16[2,1024,32]{2,1,0}', 's32[1024,128]{1,0}',
]  # fmt: skip


@pytest.mark.parametrize(
  'name, widths',
  [
    # Scores and weighted values.
    ('splash_mha_fwd_segmented_residuals.3', 64 + 32),
    # Scores, gradient of probabilities, gradient of queries.
    ('splash_mha_dq_segmented_no_residuals.1', 64 + 32 + 64),
    # Scores, gradients of probabilities, of values and of keys.
    ('splash_mha_dkv_segmented_no_residuals.1', 64 + 32 + 32 + 64),
  ],
)
def test_splash_attention_is_counted_tile_by_tile(name, widths):
  # 3 of 4 tiles of 512 x 512 scores hold something that is seen.
  scores = 4 * 3 * 512 * 512
  assert kernel(name, SPLASH) == 2 * scores * widths


def test_splash_attention_of_a_batch_counts_each_sequence():
  batched = SPLASH[:2] + [o.replace('[', '[8,', 1) for o in SPLASH[2:]]
  name = 'splash_mha_fwd_segmented_residuals.3'
  assert kernel(name, batched) == 8 * kernel(name, SPLASH)


def test_tiles_that_run_of_a_causal_mask():
  # 4 rows of tiles see 1, 2, 3 and 4 tiles: 10 of 16.
  assert hlo.splash_share(2048, 2048, (4, 4)) == 10 / 16
  assert hlo.splash_share(128, 128, (1, 1)) == 1
  # The last 512 of 2048 tokens see all four tiles of keys.
  assert hlo.splash_share(512, 2048, (1, 4)) == 1


def test_a_kernel_that_says_what_it_costs_is_taken_at_its_word():
  said = BATCHED.replace('convolution', 'custom-call').replace(
    'dim_labels=0bf_0io->0bf', 'backend_config={"cost":{"flops":"123"}}'
  )
  module = hlo.parse(said)
  assert hlo.product_flops(module, 'main', module.root('main')) == 123


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('HloModule nothing\n')
