"""Who may import whom."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CORE = {'types', 'axes', 'atomic_files'}
MODELS = CORE | {'routing', 'layers', 'modalities', 'models'}
# Below training: what its parts, checkpoints and decoding may know.
BASE = CORE | {'parallel', 'optim', 'data', 'modalities'}
TRAINED = BASE | {'objectives', 'train', 'checkpoint', 'infer'}
MAY_IMPORT = {
  'routing': CORE,
  'layers': CORE | {'routing'},
  'modalities': CORE,
  'models': MODELS,
  'parallel': CORE,
  'optim': CORE,
  'data': CORE | {'modalities'},
  'objectives': BASE | {'models', 'train'},
  'train': BASE | {'objectives', 'checkpoint'},
  'checkpoint': BASE,
  'infer': BASE,
  'evaluate': TRAINED,
  'scale': BASE | {'train'},
  'runs': MODELS | TRAINED | {'evaluate', 'scale'},
  'planning': MODELS | TRAINED | {'scale', 'runs'},
  'report': TRAINED | {'runs'},
}
HEAVY = {'tensorflow', 'seqio', 'tensorflow_datasets', 'tensorflow_text'}
FLAX = {'routing', 'layers', 'models'}
FILES = sorted(
  str(p.relative_to(ROOT))
  for folder in ('moe', 'tasks', 'launch')
  for p in (ROOT / folder).rglob('*.py')
)


def imports(path):
  for node in ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', [f for f in FILES if f.startswith('moe/')])
def test_a_file_of_moe_imports_only_what_lies_below_it(path):
  room = path.split('/')[1].removesuffix('.py')
  allowed = MAY_IMPORT.get(room, CORE) | {room}
  for name in imports(path):
    top, *rest = name.split('.')
    assert top not in {'tasks', 'launch', 'gin', 'absl'}, name
    assert top not in HEAVY or path == 'moe/data/cache.py', name
    assert top != 'flax' or room in FLAX, name
    if top == 'moe':
      assert rest[0] in allowed, name


@pytest.mark.parametrize('path', [f for f in FILES if f.startswith('tasks/')])
def test_a_task_imports_only_modalities_data_and_atomic_files_of_moe(path):
  for name in imports(path):
    top, *rest = name.split('.')
    assert top not in {'launch', 'gin', 'absl', 'jax', 'flax'}, name
    lower = {'modalities', 'data', 'atomic_files'}
    assert top != 'moe' or rest[0] in lower, name


# What a training process runs, on a machine without the packages of [data].
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in {blocked}:
  sys.modules[name] = None  # makes every import of it fail
import moe
modules = [m.name for m in pkgutil.walk_packages(moe.__path__, 'moe.')]
for name in modules:
  importlib.import_module(name)
print(len(modules))
"""


@pytest.mark.slow
def test_every_module_of_moe_is_imported_without_tensorflow_and_seqio():
  blocked = sorted(HEAVY | {'gin'})
  done = subprocess.run(
    [sys.executable, '-c', IMPORT_ALL.format(blocked=blocked)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  num_files = sum(1 for f in FILES if f.startswith('moe/') and 'init' not in f)
  assert int(done.stdout) >= num_files


def test_init_files_are_empty():
  filled = [
    f for f in FILES if f.endswith('__init__.py') and (ROOT / f).stat().st_size
  ]
  assert not filled
