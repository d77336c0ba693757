"""Each package imports only the packages that it may import."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CORE = {'types', 'axes', 'bounds', 'atomic_files', 'failpoints', 'json_text'}
CORE |= {'outages', 'stop_signals'}
BASE = CORE | {'parallel', 'optim', 'data'}
TRAINED = BASE | {'modalities', 'objectives', 'train', 'checkpoint', 'infer'}
BUILT = TRAINED | {'models', 'routing', 'layers', 'evaluate', 'scale'}
# Package of moe -> the packages, or single modules, that its files may import.
MAY_IMPORT = {
  'routing': CORE,
  'layers': CORE | {'routing', 'modalities'},
  'models': CORE | {'routing', 'layers', 'modalities'},
  'modalities': CORE,
  'parallel': CORE,
  'optim': CORE,
  'data': CORE | {'modalities'},
  'objectives': BASE | {'modalities', 'models.functional', 'train.loss'},
  'train': BASE | {'checkpoint', 'objectives.objective'},
  'checkpoint': BASE,
  'infer': BASE,
  'evaluate': TRAINED,
  'scale': BASE | {'train.program', 'train.state'},
  'runs': BUILT,
  'planning': BUILT | {'runs'},
  'report': BUILT | {'runs'},
}
HEAVY = {'tensorflow', 'seqio', 'tensorflow_datasets', 'tensorflow_text'}
FLAX = {'routing', 'layers', 'models', 'modalities'}
FILES = sorted(
  str(p.relative_to(ROOT))
  for folder in ('moe', 'tasks', 'launch')
  for p in (ROOT / folder).rglob('*.py')
)


def imports(path, is_top_level=False):
  """Full names that a file imports, everywhere or only at its top level."""
  tree = ast.parse((ROOT / path).read_text(encoding='utf-8'))
  for node in tree.body if is_top_level else ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'Later':
      yield node.args[0].value


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
      assert {rest[0], '.'.join(rest[:2])} & allowed, name


@pytest.mark.parametrize('path', [f for f in FILES if f.startswith('tasks/')])
def test_a_task_imports_only_modalities_data_and_atomic_files_of_moe(path):
  for name in imports(path):
    top, *rest = name.split('.')
    assert top not in {'launch', 'gin', 'absl', 'jax', 'flax'}, name
    lower = {'modalities', 'data', 'atomic_files'}
    assert top != 'moe' or rest[0] in lower, name


@pytest.mark.parametrize('path', [f for f in FILES if f.startswith('launch/')])
def test_launch_reads_gin_in_configs_and_tasks_in_tasks(path):
  for name in imports(path):
    top = name.split('.')[0]
    assert top not in HEAVY, name
    assert top not in {'gin', 'absl'} or path.startswith('launch/configs/')


def module(path):
  return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


MODULES = {module(path): path for path in FILES}


def modules_of(names):
  """Our own modules that define the imported names."""
  for name in names:
    for candidate in (name, name.rpartition('.')[0]):
      if candidate in MODULES:
        yield candidate
        break


def test_no_module_imports_itself_in_a_circle():
  imported = {
    name: set(modules_of(imports(path, is_top_level=True)))
    for name, path in MODULES.items()
  }
  left = dict(imported)
  while free := [name for name, below in left.items() if not below & set(left)]:
    for name in free:
      del left[name]
  assert not left  # The rest are in import cycles, or import such modules.


def test_every_module_that_is_imported_later_exists():
  later = [
    node.args[0].value
    for path in FILES
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8')))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'Later'
  ]
  assert len(later) > 20 and set(later) <= set(MODULES)


def test_no_verb_is_imported():
  verbs = {
    f'launch.{path.stem}'
    for path in (ROOT / 'launch').glob('*.py')
    if '\ndef main(' in path.read_text(encoding='utf-8')
  }
  assert len(verbs) > 10
  for path in FILES:
    assert not verbs & set(modules_of(imports(path))), path


# This program imports all of moe without gin, TensorFlow and seqio.
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
