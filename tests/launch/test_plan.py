import json

import pytest

from launch import plan
from launch.configs import configuration
from moe.planning.plan import plan_shapes

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
MACROS = {'TRAIN_STEPS': 1000, 'LEARNING_RATE': 0.1}


def run(capsys, *arguments, **macros):
  """Runs launch.plan; returns (exit code, standard output, standard error)."""
  argv = [f'--gin_file={f}' for f in FILES]
  argv += [f'--gin.{k}={v}' for k, v in (MACROS | macros).items()]
  code = plan.main([*argv, *arguments])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_json_holds_all_facts_of_the_plan(capsys):
  code, out, _ = run(capsys, '--json')
  same = configuration.load(FILES, [f'{k}={v}' for k, v in MACROS.items()])
  assert code == 0 and json.loads(out) == plan_shapes(same)


def test_the_page_loads_no_other_file(capsys, tmp_path):
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
def test_what_cannot_be_planned_is_an_error_of_one_sentence(
  capsys, argument, what
):
  code, _, err = run(capsys, argument)
  assert code == 2 and what in err and 'Traceback' not in err


@pytest.fixture(scope='module')
def libtpu():
  """Skips the test if the TPU compiler is not installed."""
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
  # Each of two sparse layers has 3 exchanges: of rows, of their weights, and of
  # outputs. The backward pass also exchanges the gradient of each.
  assert sum(c['count'] for c in exchange) == 2 * 3 * 2
  assert facts['step_seconds_full_overlap'] < facts['step_seconds_no_overlap']
