import dataclasses
import shutil
import subprocess
import sys

import jax
import pytest

from launch.configs import configuration
from moe.models.anatomy import anatomy
from moe.optim import optimizers
from moe.runs import build

NUMBERS = """include 'runs/quickstart.gin'
D_MODEL = 128
NUM_LAYERS = 2
MESH_EXPERT = 4
TRAIN_STEPS = 400
WARMUP_STEPS = 20
LEARNING_RATE = 3e-3
"""


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """[path]: a gin file that includes the quick start and sets some macros."""
  path = tmp_path_factory.mktemp('gin') / 'run.gin'
  path.write_text(NUMBERS)
  return [str(path)]


def test_a_run_is_what_the_file_says(files):
  run = configuration.load(files, [])
  assert run.data.train == 'builtin'
  assert run.model.d_model == 128
  assert run.mesh.expert == 4
  assert run.settings.train_steps == 400
  assert run.model.stack(parent=None).num_layers == 2


def test_later_files_and_then_the_command_line_override(files, tmp_path):
  second = tmp_path / 'second.gin'
  second.write_text('D_MODEL = 64\nTRAIN_STEPS = 50\n')
  run = configuration.load([*files, str(second)], ['D_MODEL=32'])
  assert run.model.d_model == 32
  assert run.settings.train_steps == 50
  # The first load has no effect on the second one.
  assert configuration.load(files, []).model.d_model == 128


def test_a_folder_of_the_users_may_have_the_name_of_one_of_ours(
  tmp_path, monkeypatch
):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'models').mkdir()
  monkeypatch.chdir(tmp_path)
  assert configuration.load(['runs/quickstart.gin'], []).model.d_model == 128


def test_a_text_may_hold_any_character(tmp_path):
  path = tmp_path / 'run.gin'
  text = "include 'runs/quickstart.gin'\nPROMPTS = ('春\u2028曉 # \x85',)\n"
  path.write_text(text + 'D_MODEL = 64\n', encoding='utf-8')
  run = configuration.load([str(path)], [])
  assert list(run.prompts) == ['春\u2028曉 # \x85']
  assert run.model.d_model == 64


def test_a_choice_can_be_made_on_the_command_line(files):
  overrides = [
    'ROUTER=@gates.Switch',
    'TOP_K=1',
    'run.Run.optimizer=@optimizers.adafactor',
    'run.Run.schedule=@schedules.rsqrt()',
    'schedules.rsqrt.learning_rate=%LEARNING_RATE',
    'schedules.rsqrt.warmup_steps=%WARMUP_STEPS',
    'schedules.rsqrt.train_steps=%TRAIN_STEPS',
  ]
  run = configuration.load(files, overrides)
  moe = run.model.stack(parent=None).block(parent=None).moe(parent=None)
  assert type(moe.anatomy().router).__name__ == 'Switch'
  # The peak is 3e-3 after 20 steps, and half of it after 80.
  assert float(run.schedule(79)) == pytest.approx(1.5e-3)
  params = {'w': jax.ShapeDtypeStruct((64, 64), 'float32')}
  state = jax.eval_shape(
    optimizers.build(run.optimizer(run.schedule)).init, params
  )
  assert {leaf.shape for leaf in jax.tree.leaves(state)} >= {(64,), (1,)}


def fields_of(run):
  """The values of a run that can be compared. Functions are left out."""
  comparable = (run.mesh, run.data, run.settings, run.initial)
  stack = run.model.stack(parent=None)
  moe = stack.block(parent=None).moe(parent=None)
  sizes = stack.num_layers, stack.remat, moe.num_experts, moe.expert_d_ff
  return (
    *map(dataclasses.asdict, comparable),
    *(run.rules, run.clip_norm, run.frozen, run.prompts),
    *(run.model.d_model, run.model.vocab_size, run.model.dtype, *sizes),
    *(moe.router(), moe.dispatch()),
    [float(run.schedule(n)) for n in (0, 100, 399)],
  )


OVERRIDES = [
  'D_MODEL=32',
  'ROUTER=@gates.Switch',
  'TOP_K=1',
  'NUM_EXPERTS=16',
  'FROZEN=("a/.*", "b")',
  'INITIAL_ASSIGNMENT=(("x", None), (r"y(.)", r"z\\1"))',
  'PROMPTS=("春曉\\n", "quote\\" and \' and a long line " )',
]


@pytest.mark.parametrize('overrides', [[], OVERRIDES])
def test_the_text_of_a_configuration_is_the_configuration(
  files, tmp_path, overrides
):
  run, text, *_ = configuration.read(files, overrides)
  before = fields_of(run)
  assert 'include' not in text
  path = tmp_path / 'config.gin'
  path.write_text(text, encoding='utf-8')
  again = configuration.read([str(path)], [])
  assert fields_of(again.run) == before
  assert again.text == text
  # The written file still has macros, so a macro can change a size.
  assert configuration.load([str(path)], ['D_MODEL=48']).model.d_model == 48
  with pytest.raises(ValueError, match="nobody reads 'D_MODLE'"):
    configuration.load([str(path)], ['D_MODLE=48'])


def test_what_is_bound_otherwise_than_in_a_written_file_is_listed(
  files, tmp_path
):
  text = configuration.read(files, ['D_MODEL=32']).text
  path = tmp_path / 'config.gin'
  path.write_text(text, encoding='utf-8')
  assert configuration.differences(text, str(path)) == []
  text = configuration.read(files, ['D_MODEL=48', 'ROUTER=@gates.Hash']).text
  assert configuration.differences(text, str(path)) == [
    'D_MODEL 32 -> 48',
    'ROUTER @gates.TopK -> @gates.Hash',
  ]
  assert configuration.differences(text, str(tmp_path / 'none.gin')) == []


def test_the_operative_text_holds_what_is_used(files):
  text = configuration.read(files, []).operative_text
  assert 'schedules.wsd.warmup_steps = %WARMUP_STEPS' in text
  assert 'optimizers.adamw.b1 = 0.9' in text  # This is a default value.
  # All blocks of the quick start are sparse, so the dense layer is not in use.
  assert 'FeedForward.width' not in text and 'D_FF' not in text.split()
  # The MoE layer always passes `num_active` to its router.
  assert 'num_active' not in text
  dense = configuration.read(files, ['MOE_EVERY=0']).operative_text
  assert 'FeedForward.width' in dense and 'num_experts' not in dense


def test_the_operative_text_has_the_choices_that_were_made(files):
  overrides = ['run.Run.optimizer=@optimizers.adafactor']
  text = configuration.read(files, overrides).operative_text
  assert 'adafactor.' in text and 'adamw.' not in text


def test_a_run_needs_a_file():
  with pytest.raises(ValueError, match='--gin_file=FILE is required'):
    configuration.load([], ['D_MODEL=3'])


def test_a_file_that_wires_no_run_is_refused():
  with pytest.raises(ValueError, match=r"models/tiny.gin must include 'runs/"):
    configuration.load(['models/tiny.gin'], [])


def test_a_run_without_a_size_says_which():
  files = ['models/tiny.gin', 'parallel/data.gin', 'tasks/builtin.gin']
  with pytest.raises(
    ValueError, match=r"'%(TRAIN_STEPS|LEARNING_RATE)' is def"
  ):
    configuration.load([*files, 'runs/train.gin'], [])


def test_an_error_of_a_configuration_waits_for_no_library_of_checkpoints():
  program = (
    'import sys; from launch import train;'
    ' code = train.main(["--gin_file=runs/quickstart.gin", "--gin.D_MODLE=1",'
    ' "--workdir=none"]);'
    ' print(code, sorted({"orbax", "matplotlib", "scipy"} & {*sys.modules}))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '2 []'
  assert "did you mean 'D_MODEL'?" in done.stderr


def test_a_missing_argument_is_named_with_its_owner(files):
  overrides = ['run.Run.schedule=@schedules.cosine()']
  with pytest.raises(ValueError, match="cosine needs 'learning_rate'"):
    configuration.load(files, overrides)


@pytest.mark.parametrize(
  ('override', 'fragment'),
  [
    ('BATCH_SIZE=0', 'BATCH_SIZE=0 must be at least 1'),
    ('SEQUENCE_LENGTH=-8', 'SEQUENCE_LENGTH=-8 must be at least 1'),
    ('SAVE_PERIOD=0', 'SAVE_PERIOD=0 must be at least 1'),
    ('WARMUP_STEPS=401', 'WARMUP_STEPS=401 must be at most TRAIN_STEPS=400'),
  ],
)
def test_a_number_that_makes_no_sense_is_one_sentence(
  files, override, fragment
):
  with pytest.raises(ValueError, match=fragment) as error:
    configuration.load(files, [override])
  assert '\n' not in str(error.value)


def test_groups_follow_the_length_of_a_sequence_unless_they_are_set():
  files = ['models/small.gin', 'parallel/data.gin', 'tasks/builtin.gin']
  files += ['runs/train.gin']
  steps = ['TRAIN_STEPS=200', 'LEARNING_RATE=0.1']
  for more, size in (
    ([], 128),
    (['SEQUENCE_LENGTH=4096'], 1024),
    (['GROUP_SIZE=32'], 32),
  ):
    run = configuration.load(files, [*steps, *more])
    assert anatomy(run.model).experts.group_size == size


def test_a_run_is_placed_on_the_devices_that_there_are(files):
  run = configuration.load(files, [])
  functional, table, mesh = build.place_model(run)
  assert dict(mesh.shape)['data'] == 2 and dict(mesh.shape)['expert'] == 4
  assert functional.module.layout.expert_axes == ('expert',)
  assert table['expert'] == ('expert',)
  alone = configuration.load(files, ['MESH_EXPERT=1'])
  functional, _, mesh = build.place_model(alone, jax.devices()[:1])
  assert mesh.size == 1
  assert functional.module.layout.sizes == ()


def test_a_trained_run_is_read_back(run_directory):
  trained = configuration.load_run(str(run_directory))
  assert trained.step == 7
  assert trained.workdir == str(run_directory)
  assert trained.run.model.d_model == 16
  assert trained.vocabulary.size <= trained.run.model.vocab_size
  table = trained.params['embedding']['table']
  assert table.shape == (320, 16)


@pytest.mark.parametrize('name', ['config.gin', 'vocabulary.model'])
def test_a_run_lacks_a_file(run_directory, tmp_path, name):
  shutil.copytree(run_directory, tmp_path / 'run')
  (tmp_path / 'run' / name).unlink()
  with pytest.raises(ValueError, match=f'{name} must lie beside'):
    configuration.load_run(str(tmp_path / 'run'))
