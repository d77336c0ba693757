"""A fixture that undoes the loading of task modules by a test."""

import sys

import pytest

from tasks import modules, registry


@pytest.fixture
def forgotten_modules(monkeypatch):
  """After a test, removes the task modules and tasks that the test loaded."""
  modules.load()
  for place, name in (
    (registry, 'TASKS'),
    (modules, 'ROOTS'),
    (modules, 'MODULE_OF'),
  ):
    monkeypatch.setattr(place, name, dict(getattr(place, name)))
  monkeypatch.setattr(modules, '_loaded', set())
  monkeypatch.setattr(modules, '_named', [])
  monkeypatch.setattr(sys, 'path', [*sys.path])
  before = set(sys.modules)
  yield
  for name in set(sys.modules) - before:
    if name.startswith('t_'):
      del sys.modules[name]
