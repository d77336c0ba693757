import pytest

from launch.configs import configuration
from moe.planning import changes, execution

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
def test_wudao_drops_at_most_one_percent_at_uneven_loads(name):
  run = configuration.load([f'runs/wudao2_{name}.gin'], [])
  assert execution.expected_drops(run, WUDAO[name], 0.3) <= 0.01


PICTURES = 'runs/wudao2_pictures_v5p_2048.gin'


def test_groups_of_modalities_drop_alike_if_they_fit_their_tokens():
  run = configuration.load([PICTURES], [])
  found = execution.drops_by_modality(run, 2048, 0.3)
  assert set(found) == {'text', 'image', 'protein'}
  assert 0 < found['text'] <= 0.01
  for share in found.values():
    # A modality with fewer experts drops slightly fewer rows.
    assert share == pytest.approx(found['text'], rel=0.05)
  shares = zip(run.data.shares, found.values(), strict=True)
  mean = sum(share * dropped for share, dropped in shares)
  expected = execution.expected_drops(run, 2048, 0.3)
  assert expected == pytest.approx(mean)


def test_a_modality_with_twice_the_tokens_of_its_experts_overflows():
  # An expert has slots for 1.55 times an even share of the rows. 95% of the
  # tokens are image codes, and half of the experts are reserved for them. So
  # these experts get 1.9 times the even share, and drop 1 - 1.55 / 1.9 = 18.4%
  # of the rows. Text drops no rows.
  changes = ['RESERVED=(256, 256)', 'run.Data.shares=(0.05, 0.95)']
  run = configuration.load([PICTURES], changes)
  found = execution.drops_by_modality(run, 2048, 0.0)
  assert found['image'] == pytest.approx(1 - 1.55 / 1.9, abs=1e-3)
  assert found['text'] == 0
  wanted = 0.95 * found['image']
  assert execution.expected_drops(run, 2048, 0.0) == pytest.approx(wanted)


def test_experts_of_two_modalities_on_a_device_cannot_be_planned():
  changes = ['MESH_EXPERT=128', 'MESH_FSDP=16', 'RESERVED=(238, 258, 16)']
  run = configuration.load([PICTURES], changes)
  with pytest.raises(ValueError, match='must be multiples of 4'):
    execution.drops_by_modality(run, 2048, 0.0)


def test_without_reserved_experts_all_modalities_drop_alike():
  run = loaded(**{'run.Data.shares': (0.25, 0.75)})
  found = execution.drops_by_modality(run, 1, 0.3)
  plain = execution.expected_drops(loaded(), 1, 0.3)
  assert found == {'text': plain, 'image': plain}


POOLED = {
  'MESH_EXPERT': 4,
  'moe_layer.MoE.exchange': '@exchange.Ragged',
}


def test_devices_that_share_tokens_fill_the_same_pool():
  # 16 x 128 tokens are divided into 2 x 4 parts. The 4 parts of an expert axis
  # fill one buffer.
  apart = execution.buffers(loaded(MESH_DATA=2, **POOLED), 8)
  shared = execution.buffers(loaded(MESH_DATA=2, MESH_MODEL=2, **POOLED), 16)
  assert apart == shared
  assert apart[0]['tokens'] == 16 * 128 * 4 // 8


def test_an_axis_of_size_minus_one_grows_with_the_number_of_devices():
  run = loaded(MESH_DATA=-1, **POOLED)
  assert execution.least_devices(run) == 4
  assert execution.buffers(run, 4)[0]['tokens'] == 16 * 128
  assert execution.buffers(run, 16)[0]['tokens'] == 16 * 128 // 4


def test_attention_is_a_kernel_on_tpus_only():
  run = loaded(SEQUENCE_LENGTH=1024, BATCH_SIZE=8)
  made = execution.execution_of(run, 1, is_tpu=True)
  # The scores are 2 x 2 tiles of 512 x 512. The kernel computes 3 of the 4.
  assert (made.attention_share, made.attention_backward) == (3 / 4, 3.5)
  # Plain XLA computes one quarter of the queries after the other, with 1, 2, 3
  # and 4 quarters of the keys. So it computes 10 of 16 parts of the scores.
  made = execution.execution_of(run, 1)
  assert (made.attention_share, made.attention_backward) == (5 / 8, 2)
  plain = loaded(ATTENTION_KERNEL="'xla'")
  assert execution.execution_of(plain, 1, is_tpu=True).attention_share == 1


def test_blocks_of_the_prefix_are_recomputed_one_by_one():
  # The model has a prefix block, then three periods of a dense and a sparse
  # block. The recomputed prefix block skips its last product. The recomputed
  # dense blocks of the periods run all three products.
  run = loaded(NUM_DENSE_PREFIX=1, NUM_LAYERS=7, MOE_EVERY=2, REMAT="'full'")
  recomputed = execution.execution_of(run, 1).recomputed
  assert recomputed['attention'] == 1
  assert recomputed['dense layers'] == pytest.approx((3 + 2 / 3) / 4)
  assert recomputed['experts'] == pytest.approx(2 / 3)


def test_the_loss_of_pictures_and_text_has_chunks():
  run = configuration.load([PICTURES], ['LOSS_CHUNKS=4'])
  assert execution.loss_chunks(run) == 4
  assert execution.loss_chunks(changes.with_chunks(run, 16)) == 16
