"""With --safe, a gin file may name only parts of a run that touch no files."""

import pathlib

import pytest

from launch.configs import bindings, safety

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
