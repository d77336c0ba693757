import pytest

from launch.configs import configuration
from moe.planning import recipe

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
MACROS = {'TRAIN_STEPS': 1000, 'LEARNING_RATE': 0.1}


def loaded(**macros):
  return configuration.load(
    FILES, [f'{k}={v}' for k, v in (MACROS | macros).items()]
  )


WUDAO = {
  'v5p_2048': 2048, 'v5p_256': 256, 'v5p_128': 128, 'tpu7x_128': 256,
}  # fmt: skip


@pytest.mark.parametrize('name', WUDAO)
def test_wudao_drops_less_than_a_hundredth_of_uneven_rows(name):
  run = configuration.load([f'runs/wudao2_{name}.gin'], [])
  assert recipe.expected_drops(run, WUDAO[name], 0.3) <= 0.01


POOLED = {
  'MESH_EXPERT': 4,
  'moe_layer.MoE.exchange': '@exchange.Ragged',
}


def test_devices_that_share_tokens_fill_the_same_pool():
  # 16 x 128 tokens over 2 x 4 devices, of which 4 fill a buffer together.
  apart = recipe.buffers(loaded(MESH_DATA=2, **POOLED), 8)
  shared = recipe.buffers(loaded(MESH_DATA=2, MESH_MODEL=2, **POOLED), 16)
  assert apart == shared
  assert apart[0]['tokens'] == 16 * 128 * 4 // 8


def test_an_axis_that_takes_what_is_left_takes_it_of_the_devices_there_are():
  run = loaded(MESH_DATA=-1, **POOLED)
  assert recipe.least_devices(run) == 4
  assert recipe.buffers(run, 4)[0]['tokens'] == 16 * 128
  assert recipe.buffers(run, 16)[0]['tokens'] == 16 * 128 // 4


def test_the_kernel_of_tpus_is_counted_on_tpus():
  run = loaded(SEQUENCE_LENGTH=1024, BATCH_SIZE=8)
  made = recipe.recipe_of(run, 1, is_tpu=True)
  # Two rows of two tiles of 512, of which 3 run.
  assert (made.attention_share, made.attention_backward) == (3 / 4, 3.5)
  # In plain XLA a quarter of the queries at a time: 1 + 2 + 3 + 4 of 16.
  made = recipe.recipe_of(run, 1)
  assert (made.attention_share, made.attention_backward) == (5 / 8, 2)
  plain = loaded(ATTENTION_KERNEL="'xla'")
  assert recipe.recipe_of(plain, 1, is_tpu=True).attention_share == 1


def test_blocks_of_the_prefix_are_done_again_one_by_one():
  # One before three periods of a dense and a sparse block: it and all that ends
  # a period need no last product again, the dense blocks in between do.
  run = loaded(NUM_DENSE_PREFIX=1, NUM_LAYERS=7, MOE_EVERY=2, REMAT="'full'")
  redone = recipe.recipe_of(run, 1).redone
  assert redone['attention'] == 1
  assert redone['dense layers'] == pytest.approx((3 + 2 / 3) / 4)
  assert redone['experts'] == pytest.approx(2 / 3)
