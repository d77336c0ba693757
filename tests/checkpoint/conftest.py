"""Saved steps that the tests of this folder share."""

import shutil

import pytest

from tests.checkpoint.states import save_steps


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
  """A directory with the steps 1 and 2, which no test may change."""
  directory = tmp_path_factory.mktemp('saved')
  save_steps(directory, [1, 2])
  return directory


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'copy')
  return tmp_path / 'copy'
