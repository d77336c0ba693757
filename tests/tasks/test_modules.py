"""A user's task modules are loaded, or an error says why they are not."""

import sys

import pytest

from tasks import modules

ONE = """from tasks import registry, text_files
source = text_files.plain_text({'train': 'no.txt'})
registry.add_text_task('t_one', source, lambda r: r['text'])
"""


@pytest.fixture
def write(tmp_path, monkeypatch, declare):
  """A function that writes a module file and returns its path.

  After the test the modules are removed from the registry and from Python.
  """
  for name, empty in (('ROOTS', {}), ('MODULE_OF', {}), ('_named', [])):
    monkeypatch.setattr(modules, name, empty)
  monkeypatch.setattr(modules, '_loaded', set())
  monkeypatch.setattr(sys, 'path', [*sys.path])
  before = set(sys.modules)

  def write_file(name, text):
    path = tmp_path / 'mine' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)

  yield write_file
  for name in set(sys.modules) - before:
    if name.startswith('t_'):
      del sys.modules[name]


def test_a_file_declares_its_tasks_and_may_import_its_neighbours(
  write, declare
):
  write('t_beside.py', ONE)
  path = write('t_mine.py', 'import t_beside\n')
  modules.load([path])
  assert declare.TASKS['t_one'].modules[-1] == 't_mine'
  assert modules.MODULE_OF == {'t_one': 't_mine'}
  modules.load([path])  # A second load must change nothing.
  assert declare.TASKS['t_one'].modules.count('t_mine') == 1


def test_a_module_is_named_as_python_imports_it(write, declare, tmp_path):
  write('t_package/inside.py', ONE)
  sys.path.append(str(tmp_path / 'mine'))
  modules.load(['t_package.inside'])
  assert 't_one' in declare.TASKS
  assert modules.ROOTS == {'t_package': tmp_path / 'mine'}


def test_locating_a_module_does_not_run_it(write):
  path = write('t_mine.py', 'raise AssertionError\n')
  assert modules.locate([path]) == ['t_mine'] == modules.named()


def error_of(*task_modules):
  with pytest.raises(ValueError) as error:
    modules.load(task_modules)
  return ' '.join(str(error.value).split())


@pytest.mark.parametrize(
  ('module', 'fragment'),
  [
    ('no.such', "'no.such' must be one that Python finds, got none"),
    ('no/such.py', 'no/such.py must be a Python file, got nothing there'),
  ],
)
def test_a_missing_module_is_one_sentence(write, module, fragment):
  assert fragment in error_of(module)


@pytest.mark.parametrize(
  ('name', 'text', 'fragment'),
  [
    ('t_mine.py', 'x = 1\n', 'must declare a task, got none'),
    ('t_mine.py', '\nimport t_nowhere\n', "named 't_nowhere' ("),
    ('t_mine.py', '\nx = (\n', 'got SyntaxError'),
    ('json.py', ONE, "must be the only module 'json', got another one"),
    ('t-mine.py', ONE, "got 't-mine': rename the file"),
    (
      't_mine.py',
      ONE.replace('t_one', 'poems_shi'),
      "got 'poems_shi', which a task of tasks.poems has",
    ),
  ],
)
def test_what_is_wrong_with_a_module_is_one_sentence(
  write, name, text, fragment
):
  assert fragment in error_of(write(name, text))


def test_an_error_in_a_module_names_its_line(write):
  path = write('t_mine.py', ONE + '\n1 / 0\n')
  assert f'got ZeroDivisionError: division by zero ({path}:5)' in error_of(path)


def test_a_task_that_a_module_registers_with_seqio_counts(write):
  seqio = pytest.importorskip('seqio')
  path = write(
    't_mine.py',
    'import seqio\n'
    'source = seqio.FunctionDataSource(lambda split, shuffle_files: 0, ["a"])\n'
    'seqio.TaskRegistry.add("t_seqio", source=source, preprocessors=[],\n'
    '                       output_features={})\n',
  )
  try:
    modules.load([path])
    assert modules.MODULE_OF == {'t_seqio': 't_mine'}
    assert 't_seqio' in modules.declared()
  finally:
    seqio.TaskRegistry.remove('t_seqio')


def test_a_task_must_be_declared_or_have_stores_unless_a_module_may_declare_it(
  write, tmp_path
):
  (tmp_path / 'v-300' / 't_stored').mkdir(parents=True)
  modules.check_tasks(['builtin', 't_stored'], tmp_path)
  with pytest.raises(ValueError, match="got 't_other'"):
    modules.check_tasks(['t_other'], tmp_path)
  # This process must not run the module.
  module = write('t_module.py', 'raise AssertionError\n')
  modules.check_tasks(['t_other'], tmp_path, [module])
