import pytest

from moe.scale import hlo, hlo_flops
from tests.scale.programs import LOOPS


def test_the_product_in_a_fusion_by_hand():
  module = hlo.parse(LOOPS)
  # 2 FLOPs x 2 rows x 8 summed products x 16 columns.
  fusion = module.computations['inner']['f']
  assert hlo_flops.product_flops(module, 'inner', fusion) == 2 * 2 * 8 * 16


BATCHED = """HloModule b

ENTRY %main (x: bf16[4,32,16], w: bf16[4,16,8]) -> bf16[4,32,8] {
  %x = bf16[4,32,16]{2,1,0} parameter(0)
  %w = bf16[4,16,8]{2,1,0} parameter(1)
  ROOT %c = bf16[4,32,8]{2,1,0} convolution(%x, %w), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""  # noqa: E501


def test_a_batch_dim_written_as_a_window_costs_no_padding():
  # The window of size 4 stands for a batch dim. So there are 4 products with 2
  # x 32 x 16 x 8 FLOPs each.
  module = hlo.parse(BATCHED)
  root = module.root('main')
  assert hlo_flops.product_flops(module, 'main', root) == 2 * 4 * 32 * 16 * 8


def kernel(name, operands, result='bf16[4,1024,64]{2,1,0}'):
  """FLOPs of a module that has only this custom call."""
  lines = [f'  %p.{i} = {o} parameter({i})' for i, o in enumerate(operands)]
  names = ', '.join(f'%p.{i}' for i in range(len(operands)))
  text = '\n'.join([
    'HloModule k', '', 'ENTRY %main (x: f32[]) -> f32[] {', *lines,
    f'  ROOT %{name} = ({result}) custom-call({names}),'
    ' custom_call_target="tpu_custom_call"',
    '}', '',
  ])  # fmt: skip
  module = hlo.parse(text)
  return hlo_flops.product_flops(module, 'main', module.root('main'))


# The operands are two tables of 2 x 2 tiles, queries of 4 heads and keys of 2
# heads with 1024 tokens and 64 features, values with 32 features, and the
# segments of the queries.
SPLASH = [
  's32[1,2,2]{2,1,0}', 's32[1,2,2]{2,1,0}', 'bf16[4,1024,64]{2,1,0}',
  'bf16[2,1024,64]{2,1,0}', 'bf16[2,1024,32]{2,1,0}', 's32[1024,128]{1,0}',
]  # fmt: skip


@pytest.mark.parametrize(
  'name, widths',
  [
    # Features of the two products: scores and weighted values.
    ('splash_mha_fwd_segmented_residuals.3', 64 + 32),
    # Scores, gradient of probabilities, and gradient of queries.
    ('splash_mha_dq_segmented_no_residuals.1', 64 + 32 + 64),
    # Scores, gradients of probabilities, of values and of keys.
    ('splash_mha_dkv_segmented_no_residuals.1', 64 + 32 + 32 + 64),
  ],
)
def test_splash_attention_is_counted_tile_by_tile(name, widths):
  # In each of 4 heads, 3 of 4 tiles of 512 x 512 scores have a visible key.
  scores = 4 * 3 * 512 * 512
  assert kernel(name, SPLASH) == 2 * scores * widths


def test_splash_attention_of_a_batch_counts_each_sequence():
  batched = SPLASH[:2] + [o.replace('[', '[8,', 1) for o in SPLASH[2:]]
  name = 'splash_mha_fwd_segmented_residuals.3'
  assert kernel(name, batched) == 8 * kernel(name, SPLASH)


def test_splash_attention_skips_the_masked_tiles_of_a_causal_mask():
  # The 4 rows of tiles see 1, 2, 3 and 4 tiles, which is 10 of 16.
  assert hlo_flops.splash_share(2048, 2048, (4, 4)) == 10 / 16
  assert hlo_flops.splash_share(128, 128, (1, 1)) == 1
  # The last 512 of 2048 tokens see all four tiles of keys.
  assert hlo_flops.splash_share(512, 2048, (1, 4)) == 1


def test_a_kernel_that_states_its_flops_counts_as_stated():
  said = BATCHED.replace('convolution', 'custom-call').replace(
    'dim_labels=0bf_0io->0bf', 'backend_config={"cost":{"flops":"123"}}'
  )
  module = hlo.parse(said)
  assert hlo_flops.product_flops(module, 'main', module.root('main')) == 123
