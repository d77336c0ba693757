"""The record of files and code shows whether documents would change."""

import hashlib
import os
import pathlib
import shutil
import sys

import pytest

from tasks import equal_code, modules, origin


@pytest.fixture
def data(tmp_path, monkeypatch):
  monkeypatch.setenv('WUDAO_DATA', str(tmp_path / 'data'))
  (tmp_path / 'data').mkdir()
  for name in ('a.txt', 'b.txt'):
    (tmp_path / 'data' / name).write_text(name)
  return tmp_path / 'data'


def test_files_are_compared_where_the_data_directory_is_now(data, monkeypatch):
  recorded = origin.record(['*.txt'])
  moved = shutil.copytree(data, data.parent / 'moved')
  (data / 'a.txt').write_text('other')
  assert origin.changed(recorded) == str(data / 'a.txt')
  monkeypatch.setenv('WUDAO_DATA', str(moved))
  assert origin.changed(recorded) is None


def test_a_removed_file_is_a_change_of_the_pattern(data):
  recorded = origin.record(['*.txt'])
  (data / 'b.txt').unlink()
  assert origin.changed(recorded) == str(data / '*.txt')
  (data / 'a.txt').unlink()
  # A machine may have the store, but not the corpus.
  assert origin.changed(recorded) is None


def test_a_new_file_in_a_subfolder_is_a_change_of_the_pattern(data):
  (data / 'more').mkdir()
  recorded = origin.record(['**'])
  (data / 'more' / 'c.txt').write_text('c')
  assert origin.changed(recorded) == str(data / '**')


def test_a_large_file_is_hashed_again_only_when_its_time_changes(
  data, monkeypatch
):
  recorded = origin.record(['a.txt'])
  time = (data / 'a.txt').stat().st_mtime_ns
  (data / 'a.txt').write_text('x.txt')
  os.utime(data / 'a.txt', ns=(time, time))
  assert origin.changed(recorded) == str(data / 'a.txt')
  monkeypatch.setattr(origin, '_ALWAYS_HASHED_BYTES', 4)
  assert origin.changed(recorded) is None
  os.utime(data / 'a.txt', ns=(time, time + 1))
  assert origin.changed(recorded) == str(data / 'a.txt')


def test_the_code_of_a_module_is_what_it_imports_from_the_tasks():
  names = {os.path.basename(path) for path in origin.code('tasks.poems')}
  assert {'poems.py', 'registry.py', 'zh_corpora.py', 'splits.py'} <= names
  assert not names & {'couplets.py', 'mixtures.py', 'store.py', 'origin.py'}


@pytest.fixture
def owned(tmp_path, monkeypatch):
  """A folder with a user's file, modules that it imports, and an unused one."""
  monkeypatch.setattr(modules, 'ROOTS', {})
  monkeypatch.setattr(modules, '_named', [])
  monkeypatch.setattr(sys, 'path', [*sys.path])
  for name, text in {
    't_file.py': 'import json, t_clean\nfrom tasks import splits\n',
    't_clean.py': 'def clean():\n  from t_words import marks\n',
    't_words/marks.py': 'from . import more\n',
    't_words/more.py': 'from t_kept import KEPT\n',
    't_kept/__init__.py': 'KEPT = 1\n',
    't_apart.py': '',
  }.items():
    path = tmp_path / 'mine' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  modules.locate([str(tmp_path / 'mine' / 't_file.py')])
  yield tmp_path / 'mine'
  for name in [
    name for name in sys.modules if name[:7] in ('t_words', 't_kept')
  ]:
    del sys.modules[name]


def test_the_code_of_a_users_file_is_what_it_imports_from_its_folder(owned):
  mine = {p for p in origin.code('t_file') if str(owned) in p}
  names = {str(pathlib.Path(path).relative_to(owned)) for path in mine}
  assert names == {
    't_file.py',
    't_clean.py',
    't_words/marks.py',
    't_words/more.py',
    't_kept/__init__.py',
  }
  assert any(p.endswith('tasks/splits.py') for p in origin.code('t_file'))
  assert not any(p.endswith('json/__init__.py') for p in origin.code('t_file'))


def test_a_users_code_is_compared_where_its_folder_is_now(owned, monkeypatch):
  recorded = origin.record(origin.code('t_file'))
  moved = shutil.copytree(owned, owned.parent / 'moved')
  (moved / 't_words/more.py').write_text('MORE = 2\n')
  assert origin.changed(recorded) is None
  monkeypatch.setitem(modules.ROOTS, 't_file', moved)
  assert origin.changed(recorded) == str(moved / 't_words/more.py')


def test_versions_of_code_that_make_the_same_documents_are_equal(
  data, monkeypatch
):
  recorded = origin.record(['a.txt'])
  before = recorded['$WUDAO_DATA/a.txt']['$WUDAO_DATA/a.txt'][2]
  (data / 'a.txt').write_text('longer')
  now = hashlib.sha256(b'longer').hexdigest()
  monkeypatch.setattr(equal_code, 'EQUAL', {'a': (before, '0')})
  assert origin.changed(recorded) == str(data / 'a.txt')
  monkeypatch.setattr(equal_code, 'EQUAL', {'a': (before, now)})
  assert origin.changed(recorded) is None


@pytest.mark.parametrize('name', equal_code.EQUAL)
def test_the_present_code_is_known_to_make_the_documents_of_old_stores(name):
  # If this fails because of a change that alters no document, add the new
  # SHA-256 to tasks/equal_code.py.
  path = pathlib.Path(origin.__file__).parent / name
  now = hashlib.sha256(path.read_bytes()).hexdigest()
  assert equal_code.is_equal(now, equal_code.EQUAL[name][0])
