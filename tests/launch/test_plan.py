import json

import pytest

from launch import plan
from launch.configs import configuration
from moe.planning import recipe
from moe.scale import topology

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
MACROS = {'TRAIN_STEPS': 1000, 'LEARNING_RATE': 0.1}


def run(capsys, *arguments, **macros):
  """(exit code, standard output, standard error) of the command."""
  argv = [f'--gin_file={f}' for f in FILES]
  argv += [f'--gin.{k}={v}' for k, v in (MACROS | macros).items()]
  code = plan.main([*argv, *arguments])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def loaded(**macros):
  return configuration.load(
    FILES, [f'{k}={v}' for k, v in (MACROS | macros).items()]
  )


@pytest.fixture(scope='module')
def facts():
  return plan.plan_shapes(loaded())


def test_json_is_what_is_known(capsys, facts):
  code, out, _ = run(capsys, '--json')
  assert code == 0 and json.loads(out) == facts


def test_without_chips_the_promised_keys_are_there(facts):
  promised = (
    'params_total params_active flops_per_token_forward flops_per_token_train'
    ' drop_rate_balanced drop_rate_cv03'
  )
  assert set(promised.split()) <= set(facts)


def test_components_add_up_to_the_parameters(facts):
  parts = facts['components'].values()
  assert sum(p['total'] for p in parts) == facts['params_total']
  assert sum(p['active'] for p in parts) == facts['params_active']


def test_tokens_and_chip_hours_of_the_run_by_hand(facts):
  # 1000 steps of 16 rows of 128 tokens; H100: 989 TFLOP/s at 40%.
  assert facts['tokens'] == 1000 * 16 * 128
  flops = facts['tokens'] * facts['flops_per_token_train']
  hours = flops / (989e12 * 0.4) / 3600
  assert facts['chip_hours']['h100'] == pytest.approx(hours)


def test_adamw_keeps_two_numbers_for_each_parameter(facts):
  two = pytest.approx(2 * facts['param_bytes'], rel=1e-3)
  assert facts['optimizer_bytes'] == two


def test_uneven_loads_drop_more(facts):
  assert 0 < facts['drop_rate_balanced'] < facts['drop_rate_cv03'] < 0.2


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


def test_a_dense_model_drops_nothing(capsys):
  _, out, _ = run(capsys, '--json', MOE_EVERY=0)
  assert json.loads(out)['drop_rate_cv03'] == 0


def test_empty_slots_and_recomputation_are_executed_too(capsys, facts):
  _, out, _ = run(capsys, '--json', CAPACITY_FACTOR=2.5, REMAT="'full'")
  wide = json.loads(out)
  assert wide['flops_per_token_train'] == facts['flops_per_token_train']
  for key in ('forward', 'train'):
    key = f'executed_flops_per_token_{key}'
    assert wide[key] > facts[key]


def test_the_page_needs_nothing_else(capsys, tmp_path):
  path = tmp_path / 'plan.html'
  code, out, _ = run(capsys, f'--html={path}')
  page = path.read_text(encoding='utf-8')
  assert code == 0 and 'active per token' in out
  assert 'active per token' in page
  assert 'src=' not in page and 'href=' not in page


@pytest.mark.parametrize(
  'argument, what',
  [
    ('--topology=v5p', 'a chip and a shape such as'),
    ('--search', '--search needs --topology'),
    ('--topology=b200:64', 'must be TPUs'),
  ],
)
def test_what_can_not_be_planned_is_said_in_a_sentence(capsys, argument, what):
  code, _, err = run(capsys, argument)
  assert code == 2 and what in err and 'Traceback' not in err


@pytest.fixture(scope='module')
def libtpu():
  """Skips where the compiler is not installed."""
  pytest.importorskip('libtpu')


@pytest.mark.slow
@pytest.mark.optimized
def test_the_step_of_a_small_model_is_compiled_for_four_chips(
  capsys, libtpu, monkeypatch, tmp_path
):
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  arguments = ('--json', '--topology=v5e:2x2')
  macros = {'MESH_DATA': 2, 'MESH_EXPERT': 2, 'DTYPE': "'bfloat16'"}
  code, out, _ = run(capsys, *arguments, **macros)
  facts = json.loads(out)
  assert code == 0
  promised = (
    'chips devices hbm_bytes argument_bytes temp_bytes peak_bytes'
    ' compile_seconds executed_flops_per_chip collective_bytes_per_chip'
    ' step_seconds_no_overlap step_seconds_full_overlap mfu_no_overlap'
    ' mfu_full_overlap bound compiler_seconds'
  )
  assert set(promised.split()) <= set(facts)
  assert facts['chips'] == 4 and not facts['unknown_loops']
  step = facts['executed_flops_per_token_train'] * facts['tokens_per_step'] / 4
  assert facts['executed_flops_per_chip'] == pytest.approx(step, rel=0.03)
  exchange = [c for c in facts['collectives'] if c['kind'] == 'all-to-all']
  assert {tuple(c['axes']) for c in exchange} == {('expert',)}
  # Two sparse layers: rows and their weights out, outputs back; each of these
  # has a gradient that goes the other way.
  assert sum(c['count'] for c in exchange) == 2 * 3 * 2
  assert facts['step_seconds_full_overlap'] < facts['step_seconds_no_overlap']


@pytest.mark.nightly
@pytest.mark.optimized
def test_wudao_fits_2048_chips_with_a_quarter_to_spare(
  libtpu, monkeypatch, tmp_path
):
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  wudao = configuration.load(['runs/wudao2_v5p_2048.gin'], [])
  slice_ = topology.parse('v5p:8x16x16')
  known = plan.plan_shapes(wudao, slice_)
  facts = plan.plan_topology(wudao, slice_, known)
  assert facts['headroom'] >= 0.25
  assert facts['mfu_no_overlap'] >= 0.4
  a_chip = known['executed_flops_per_token_train'] * known['tokens_per_step']
  a_chip /= 2048
  assert facts['executed_flops_per_chip'] == pytest.approx(a_chip, rel=0.01)
