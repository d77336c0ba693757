"""The child process that makes token stores: its start and its command."""

import subprocess
import sys

import pytest

from launch import token_stores
from tasks import modules


@pytest.fixture
def commands(monkeypatch):
  """A list of the commands of child processes, which end at once."""
  commands, popen = [], subprocess.Popen

  def started(command, **options):
    commands.append(command)
    return popen([sys.executable, '-c', ''], **options)

  monkeypatch.setattr(subprocess, 'Popen', started)
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


def test_work_is_done_while_the_child_runs(tmp_path, monkeypatch):
  waits = [sys.executable, '-c', 'input()']
  popen, children = subprocess.Popen, []

  def started(command, **options):
    children.append(popen(waits, stdin=subprocess.PIPE, **options))
    return children[-1]

  def meanwhile():
    assert children[0].poll() is None
    children[0].communicate(b'\n')

  monkeypatch.setattr(subprocess, 'Popen', started)
  wanted = [('t', ['train'])], tmp_path
  token_stores.prepare(*wanted, vocab_size=300, meanwhile=meanwhile)
  assert children[0].returncode == 0


def test_a_child_ends_with_the_command_that_started_it(tmp_path, monkeypatch):
  popen, children = subprocess.Popen, []

  def started(command, **options):
    children.append(
      popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    )
    return children[-1]

  def meanwhile():
    raise KeyboardInterrupt

  monkeypatch.setattr(subprocess, 'Popen', started)
  with pytest.raises(KeyboardInterrupt):
    token_stores.prepare(
      [('t', ['train'])], tmp_path, vocab_size=300, meanwhile=meanwhile
    )
  assert children[0].returncode < 0
