"""With --safe, a gin file may name only parts of a run that touch no files."""

import argparse
import pathlib
import shutil

import pytest

from launch.configs import bindings, flags, safety

HEAD = 'from __gin__ import dynamic_registration\n'
CONFIGS = pathlib.Path(bindings.SEARCH_PATHS[1])
# Runs whose tasks are declared in modules of their own.
LOADING = {
  f'runs/{name}.gin'
  for name in (
    'chains_cpu', 'chains_masked_cpu', 'emoji_cpu', 'fashion_pictures',
    'hanzi_cpu', 'pictures_cpu', 'pictures_gpu', 'pictures_poems_cpu',
    'pictures_recipe_cpu',
  )
}  # fmt: skip


@pytest.mark.parametrize(
  'name',
  sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob('*.gin')),
)
def test_our_own_files_are_safe_unless_they_load_a_module(name):
  if name in LOADING:
    with pytest.raises(ValueError, match='TASK_MODULES must not be bound'):
      safety.check([name])
  else:
    safety.check([name])


@pytest.mark.parametrize(
  ('text', 'fragment'),
  [
    ('import os\nX = @os.getcwd()', 'with --safe os must be one of'),
    ('from os import path\nX = @path.exists()', 'os.path must be one of'),
    ('from moe import atomic_files', 'moe.atomic_files must be one of'),
    ('from tasks import modules', 'tasks.modules must be one of'),
    ('import moe.routing.gates', 'imported with `from`'),
    ('import evil as gates', 'evil must be one of'),
    (
      'from moe.routing import gates\nX = @gates.jax.jit()',
      'gates.jax.jit must be a class or a function',
    ),
    (
      'from moe.optim import optimizers\nX = (1, {2: @optimizers.Callable})',
      'optimizers.Callable must be',
    ),
    ('X = @eval()', 'eval must be a class'),
    ('eval.source = "1"', 'eval must be a class'),
    ("TASK_MODULES = ('evil.py',)", 'TASK_MODULES must not be bound'),
    (
      "from moe.runs import run\nrun.Data.task_modules = ('evil.py',)",
      'task_modules must not be bound',
    ),
    ("include '/etc/passwd'", 'without a leading slash'),
    ("include '../evil.gin'", 'slash and ..'),
  ],
)
def test_what_could_run_code_is_refused_with_its_place(
  tmp_path, text, fragment
):
  path = tmp_path / 'run.gin'
  path.write_text(HEAD + text + '\n')
  with pytest.raises(ValueError) as error:
    safety.check([str(path)])
  assert fragment in str(error.value)
  assert str(error.value).startswith(f'{path}:')


def test_what_is_included_is_checked_as_well(tmp_path):
  (tmp_path / 'inner.gin').write_text(HEAD + 'import os\n')
  path = tmp_path / 'run.gin'
  path.write_text("include 'inner.gin'\n")
  with pytest.raises(ValueError, match='inner.gin:2: with --safe os'):
    safety.check([str(path)])


def test_a_run_of_a_stranger_is_checked_in_place_of_a_checkpoint(
  run_directory, tmp_path
):
  run = shutil.copytree(run_directory, tmp_path / 'run')
  assert untrusted(run).checkpoint == str(run)


@pytest.fixture
def bare_run(tmp_path):
  """A work directory with an empty step and an empty config.gin."""
  (tmp_path / 'run/checkpoints/5/meta').mkdir(parents=True)
  (tmp_path / 'run/checkpoints/5/state').mkdir()
  (tmp_path / 'run/config.gin').write_text('')
  return tmp_path / 'run'


def untrusted(directory):
  parser = argparse.ArgumentParser()
  flags.add_checkpoint_flag(parser)
  return parser.parse_args([f'--untrusted={directory}'])


@pytest.mark.parametrize('place', ['', 'checkpoints', 'checkpoints/5'])
@pytest.mark.parametrize(
  ('name', 'fragment'),
  [
    ('config.gin', 'with --untrusted os must be one of'),
    ('checkpoints/5/state/a.pkl', 'can contain code'),
    ('checkpoints/5/config.gin', 'can contain code'),
  ],
)
def test_a_run_of_a_stranger_that_could_run_code_is_refused(
  bare_run, capsys, name, fragment, place
):
  untrusted(bare_run / place)
  (bare_run / name).write_text('import os')
  with pytest.raises(SystemExit, match='2'):
    untrusted(bare_run / place)
  assert fragment in capsys.readouterr().err


def test_checkpoints_that_are_a_link_are_refused(bare_run, capsys):
  (bare_run / 'checkpoints').rename(bare_run / 'elsewhere')
  (bare_run / 'checkpoints').symlink_to(bare_run / 'elsewhere')
  with pytest.raises(SystemExit):
    untrusted(bare_run)
  assert 'it is a link' in capsys.readouterr().err
