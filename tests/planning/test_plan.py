import pytest

from launch.configs import configuration
from moe.planning import plan, report
from moe.scale import topology
from tests.planning import cases

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


@pytest.fixture(scope='module')
def facts():
  return plan.plan_shapes(loaded())


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
  # The run has 1000 steps of 16 rows with 128 tokens. An H100 has 989 TFLOP/s,
  # and the plan assumes an MFU of 40%.
  assert facts['tokens'] == 1000 * 16 * 128
  flops = facts['tokens'] * facts['flops_per_token_train']
  hours = flops / (989e12 * 0.4) / 3600
  assert facts['chip_hours']['h100'] == pytest.approx(hours)


def test_adamw_keeps_two_numbers_for_each_parameter(facts):
  two = pytest.approx(2 * facts['param_bytes'], rel=1e-3)
  assert facts['optimizer_bytes'] == two


def test_uneven_loads_drop_more(facts):
  assert 0 < facts['drop_rate_balanced'] < facts['drop_rate_cv03'] < 0.2


def test_a_dense_model_drops_nothing():
  assert plan.plan_shapes(loaded(MOE_EVERY=0))['drop_rate_cv03'] == 0


def test_empty_slots_and_recomputation_are_executed_too(facts):
  wide = plan.plan_shapes(loaded(CAPACITY_FACTOR=2.5, REMAT="'full'"))
  assert wide['flops_per_token_train'] == facts['flops_per_token_train']
  for key in ('forward', 'train'):
    key = f'executed_flops_per_token_{key}'
    assert wide[key] > facts[key]


@pytest.mark.nightly
@pytest.mark.optimized
def test_wudao_fits_2048_chips_with_a_quarter_of_memory_free(
  monkeypatch, tmp_path
):
  pytest.importorskip('libtpu')
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


@pytest.mark.nightly
@pytest.mark.optimized
def test_two_slices_exchange_gradients_over_the_network(monkeypatch, tmp_path):
  pytest.importorskip('libtpu')
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  sizes = ['MESH_EXPERT=2', 'D_MODEL=128', 'NUM_LAYERS=2', 'BATCH_SIZE=16']
  run = configuration.load(['runs/quickstart.gin'], [*sizes, 'NUM_SLICES=2'])
  slice_ = topology.parse('v5p:2x2x1', 2)
  facts = plan.plan(run, slice_)
  assert (
    facts['chips'] == 8 and facts['axes_on_torus']['data'][:8] == '2 slices'
  )
  across = [row for row in facts['collectives'] if row['is_network']]
  assert {tuple(row['axes']) for row in across} == {('data',)}
  assert facts['network_bytes_per_chip'] > 0
  assert 'network' in facts['busy_seconds']
  assert 'to other slices' in report.text(facts)


@pytest.mark.nightly
@pytest.mark.optimized
def test_text_and_pictures_fit_2048_chips(monkeypatch, tmp_path):
  pytest.importorskip('libtpu')
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  run = configuration.load(['runs/wudao2_pictures_v5p_2048.gin'], [])
  slice_ = topology.parse('v5p:8x16x16')
  facts = plan.plan_topology(run, slice_, plan.plan_shapes(run, slice_))
  assert facts['headroom'] >= 0.25
  assert facts['mfu_no_overlap'] >= 0.35


def test_a_plan_tells_modalities_apart(facts):
  assert 'modalities' not in facts
  mixed = plan.plan_shapes(loaded(**{'run.Data.shares': (0.25, 0.75)}))
  found = mixed['modalities']
  assert {name: f['share'] for name, f in found.items()} == {
    'text': 0.25,
    'image': 0.75,
  }
  assert found['image']['drop_rate_cv03'] > found['image']['drop_rate_balanced']
  # All ids share one softmax, so all tokens have equal FLOPs.
  assert found['image']['flops_share'] == 0.75
  lines = report.text(mixed).splitlines()
  assert any('image' in line and '75.0% of tokens' in line for line in lines)


def test_a_token_pays_for_the_logits_of_its_own_modality():
  plain = plan.plan_shapes(cases.loaded(LOSS_CHUNKS=8))
  facts = plan.plan_shapes(
    cases.loaded(
      **{
        'LOSS_CHUNKS': 8,
        'run.Data.shares': (0.25, 0.75),
        'decoder.Decoder.ranges': (('image', 1000),),
      }
    )
  )
  # Of 16384 ids, 15360 are of text and 1000 are codes; 24 pad the codes. The
  # mean token has .25 * 15360 + .75 * 1000 = 4590 logits.
  saved = 2 * 1024 * (16384 - 4590)
  key = 'flops_per_token_forward'
  assert facts[key] == plain[key] - saved
  # One of 8 chunks may have targets of both ranges.
  key = f'executed_{key}'
  assert facts[key] == pytest.approx(plain[key] - saved + 2 * 1024 * 16384 / 8)
  image = facts['modalities']['image']['flops_share']
  own = facts['flops_per_token_forward'] - 2 * 1024 * (4590 - 1000)
  assert image == pytest.approx(0.75 * own / facts['flops_per_token_forward'])


def test_a_plan_counts_the_block_that_predicts_two_tokens_ahead():
  plain = plan.plan_shapes(cases.loaded())
  facts = plan.plan_shapes(cases.loaded(PREDICTS_AHEAD=True))
  for name in ('params_active', 'flops_per_token_forward'):
    assert facts[name] == plain[name]
  # The block has products with its parameters and with the table of 16384 x
  # 1024. Its attention has 8 heads of 128 features and 1024 keys on average.
  block = facts['params_total'] - plain['params_total']
  ahead = 2 * (block + 16384 * 1024) + 4 * 8 * 128 * 1024
  more = facts['flops_per_token_train'] - plain['flops_per_token_train']
  assert more == 3 * ahead


def test_a_plan_counts_products_and_state_of_muon():
  files = [*cases.FILES, 'runs/muon.gin']
  bindings = [f'{k}={v}' for k, v in cases.MACROS.items()]
  facts = plan.plan_shapes(configuration.load(files, bindings))
  plain = plan.plan_shapes(cases.loaded())
  assert plain['flops_per_token_optimizer'] == 0
  # Experts have most of Muon's FLOPs. 4 of 8 layers have 16 experts with 3
  # matrices of 1024 x 4096.
  step = 5 * (4 * 1024**2 * 4096 + 2 * 1024**3)
  experts = 4 * 16 * 3 * step / (64 * 2048)
  assert experts < facts['flops_per_token_optimizer'] < 1.2 * experts
  of_token = facts['flops_per_token_train'] + facts['flops_per_token_optimizer']
  assert facts['flops'] == facts['tokens'] * of_token
  # Muon stores one moment of each matrix. AdamW stores two moments of the table
  # of 16384 x 1024.
  wanted = plain['optimizer_bytes'] / 2 + 4 * 16384 * 1024
  assert facts['optimizer_bytes'] == pytest.approx(wanted, rel=0.01)
