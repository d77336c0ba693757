"""The child process that makes token stores: its start and its command."""

import sys
import types

import pytest

from launch import token_stores
from tasks import modules


@pytest.fixture
def commands(monkeypatch):
  """A list of the commands of child processes, which are not run."""
  commands = []

  def run(command, **options):
    commands.append(command)
    return types.SimpleNamespace(returncode=0)

  fake = types.SimpleNamespace(run=run, DEVNULL=None)
  monkeypatch.setattr(token_stores, 'subprocess', fake)
  return commands


@pytest.fixture
def module(tmp_path, monkeypatch):
  """The path of a task module that raises an error if it is run."""
  for name, empty in (('ROOTS', {}), ('_named', [])):
    monkeypatch.setattr(modules, name, empty)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  (tmp_path / 't_module.py').write_text('raise AssertionError\n')
  return str(tmp_path / 't_module.py')


def test_the_child_gets_the_task_modules_of_the_run(commands, module, tmp_path):
  token_stores.prepare(
    [('t', ['train'])], tmp_path, vocab_size=300, task_modules=[module]
  )
  [command] = commands
  assert command[-2:] == [f'--task_module={module}', 't/train']


def test_a_missing_task_module_is_an_error_before_a_child_starts(
  commands, tmp_path
):
  with pytest.raises(ValueError, match=r'no\.py must be a Python file'):
    token_stores.prepare(
      [('t', ['train'])], tmp_path, vocab_size=300, task_modules=['no.py']
    )
  assert not commands
