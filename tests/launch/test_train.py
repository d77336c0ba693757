"""Each typical mistake gives one sentence and code 2, before any slow work."""

import importlib.util
import json
import shutil
import subprocess
import types

import pytest

from launch import data, token_stores, train
from moe.checkpoint import save
from moe.modalities.text import train_vocabulary
from moe.runs import build
from moe.train import program as program_lib
from tasks import modules, registry, text_files

FILE = '--gin_file=runs/quickstart.gin'
SMALL = [
  FILE,
  '--gin.D_MODEL=16',
  '--gin.NUM_LAYERS=1',
  '--gin.EXPERT_D_FF=8',
  '--gin.VOCAB_SIZE=600',
]


def refuse(*args, **options):
  raise AssertionError('this is slow work')


@pytest.fixture
def run_main(monkeypatch, tmp_path, capfd):
  """A function that runs launch.train; returns (exit code, standard error).

  An error is raised if the command tokenises, trains a vocabulary, compiles the
  step or makes the initial state. The child process that looks up tasks is
  replaced by a call in this process.
  """
  real_build = build.build

  def child(command, **options):
    assert command[1:3] == ['-m', 'launch.data']
    return subprocess.CompletedProcess(command, data.main(command[3:]))

  monkeypatch.setattr(
    token_stores, 'subprocess', types.SimpleNamespace(run=child, DEVNULL=None)
  )
  monkeypatch.setattr(
    build, 'build', lambda r: real_build(r)._replace(init=refuse)
  )
  monkeypatch.setattr(program_lib._Step, 'compile', refuse)
  monkeypatch.setattr('moe.data.cache.cache_task', refuse)
  monkeypatch.setattr('tasks.stores.train_vocabulary', refuse)
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path / 'cache'))

  def run(flags, workdir=None):
    argv = [*flags, f'--workdir={workdir or tmp_path / "run"}']
    try:
      code = train.main(argv)
    except SystemExit as error:  # The child has printed the reason.
      code = error.code
    return code, capfd.readouterr().err

  return run


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  """Declares two tasks: t_bad is not UTF-8, t_good has no validation split."""
  if importlib.util.find_spec('seqio') is None:
    pytest.skip('needs the extra [data]')
  modules.load()
  monkeypatch.setattr(registry, 'TASKS', dict(registry.TASKS))
  (tmp_path / 'bad.txt').write_bytes('好\n'.encode() + '白日'.encode('gbk'))
  (tmp_path / 'good.txt').write_text('白日依山盡\n' * 9, encoding='utf-8')
  for name in ('bad', 'good'):
    source = text_files.plain_text({'train': tmp_path / f'{name}.txt'})
    registry.add_text_task(f't_{name}', source, lambda record: record['text'])


def error_of(result):
  """The only line on standard error; fails unless the exit code is 2."""
  code, err = result
  lines = [line for line in err.splitlines() if line]
  assert code == 2
  assert len(lines) == 1 and lines[0].startswith('error: ')
  return lines[0]


@pytest.mark.parametrize(
  ('flags', 'fragment'),
  [
    ([FILE, '--gin.D_MODLE=64'], "did you mean 'D_MODEL'?"),
    (
      [FILE, '--gin.optimizers.adafactor.momentum=0.9'],
      "nobody reads 'adafactor.momentum'",
    ),
    ([FILE, '--gin.D_MODEL="64"'], "'D_MODEL' must be int, got '64'"),
    (['--gin_file=runs/quickstrat.gin'], "mean 'runs/quickstart.gin'?"),
    ([FILE, '--gin.VOCABULARY="no.model"'], 'got nothing there'),
    ([FILE, '--gin.INITIAL_CHECKPOINT="none"'], 'INITIAL_CHECKPOINT: /'),
    ([FILE, '--gin.REMAT="most"'], "REMAT='most' must be one of"),
    (
      [*SMALL, '--gin.NUM_EXPERTS=6'],
      "NUM_EXPERTS=6 must be divisible by the 'expert' mesh axis",
    ),
  ],
)
def test_a_mistake_in_the_configuration_is_one_sentence(
  run_main, flags, fragment
):
  assert fragment in error_of(run_main(flags))


def test_a_directory_that_cannot_be_written_is_an_error(run_main, tmp_path):
  (tmp_path / 'file').touch()
  assert 'must be a writable directory' in error_of(
    run_main([FILE], tmp_path / 'file' / 'run')
  )


def test_a_full_disk_is_an_error(run_main, monkeypatch):
  monkeypatch.setattr(save, '_free_bytes', lambda directory: 1000)
  assert 'for its checkpoints, got 1000 B free' in error_of(run_main(SMALL))


def test_a_damaged_checkpoint_is_an_error(run_main, run_directory, tmp_path):
  workdir = shutil.copytree(run_directory, tmp_path / 'damaged')
  for path in (workdir / 'checkpoints/7/state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-1])
  code, err = run_main([f'--gin_file={workdir}/config.gin'], workdir)
  warning, error = err.splitlines()
  assert code == 2
  assert warning.startswith('Checkpoint 7 in ') and 'is damaged' in warning
  assert error.startswith('error: No sound checkpoint in')


def test_a_vocabulary_of_another_run_is_an_error(
  run_main, run_directory, tmp_path
):
  train_vocabulary(['白日依山盡'], 300, tmp_path / 'mine.model')
  vocabulary = f'--gin.VOCABULARY="{tmp_path}/mine.model"'
  workdir = shutil.copytree(run_directory, tmp_path / 'run')
  assert 'must be the vocabulary of the' in error_of(
    run_main([FILE, vocabulary], workdir)
  )
  origin = f'--gin.INITIAL_CHECKPOINT="{run_directory}"'
  result = run_main([*SMALL, vocabulary, origin], tmp_path / 'new')
  assert "('embedding/table', None) in INITIAL_ASSIGNMENT" in error_of(result)


def test_a_vocabulary_too_large_for_the_model_is_an_error(
  run_main, run_directory
):
  vocabulary = f'--gin.VOCABULARY="{run_directory}/vocabulary.model"'
  result = run_main([FILE, vocabulary, '--gin.VOCAB_SIZE=200'])
  assert 'VOCAB_SIZE=200 must be at least the' in error_of(result)


@pytest.mark.parametrize(
  ('flag', 'fragment'),
  [
    ('TASK="t_bad"', 'bad.txt:2: '),
    ('TASK="t_goud"', 'did you mean t_good'),
    ('EVAL_TASKS=("t_goud",)', 'did you mean t_good'),
    ('EVAL_TASKS=("t_good",)', "must be one of train, got 'validation'"),
  ],
)
def test_a_mistake_in_a_task_is_an_error_before_any_is_tokenised(
  run_main, tasks, flag, fragment
):
  flags = [*SMALL, '--gin.TASK="t_good"', f'--gin.{flag}']
  if flag.startswith('TASK'):
    flags.append('--gin.EVAL_TASKS=()')
  assert fragment in error_of(run_main(flags))


def test_the_child_loads_a_task_module_of_the_configuration(
  run_main, forgotten_modules, tmp_path
):
  (tmp_path / 't_mine.py').write_text(
    'from tasks import registry, text_files\n'
    "source = text_files.plain_text({'train': 'no.txt'})\n"
    "registry.add_text_task('t_mine', source, lambda r: r['text'])\n"
  )
  module = f'--gin.TASK_MODULES=["{tmp_path}/t_mine.py"]'
  flags = [*SMALL, module, '--gin.TASK="t_mien"']
  assert 'did you mean t_mine' in error_of(run_main(flags))


@pytest.fixture
def resumed(tmp_path):
  """A work directory whose newest checkpoint is step 7."""
  meta = {'step': 7, 'seed': 0, 'batch_size': 16, 'sequence_length': 128}
  path = tmp_path / 'resumed/checkpoints/7/meta/metadata'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(meta))
  return tmp_path / 'resumed'


@pytest.mark.parametrize(
  ('flags', 'fragment'),
  [
    (
      ['--gin.BATCH_SIZE=32'],
      'BATCH_SIZE=32 must be 16, the value at the start',
    ),
    (['--gin.SEQUENCE_LENGTH=64'], 'Set --gin.SEQUENCE_LENGTH=128, or'),
    (['--gin.SEED=3'], 'SEED=3 must be 0, the value at the start'),
    (
      ['--gin.TRAIN_STEPS=5', '--gin.WARMUP_STEPS=1'],
      'TRAIN_STEPS=5 must be at least the 7 steps',
    ),
  ],
)
def test_a_run_does_not_resume_with_another_order_of_data(
  run_main, resumed, flags, fragment
):
  assert fragment in error_of(run_main([FILE, *flags], resumed))
