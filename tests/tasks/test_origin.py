"""Whether what documents were made of has changed."""

import os
import shutil

import pytest

from tasks import origin


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


def test_a_file_more_or_less_is_a_change_of_the_pattern(data):
  recorded = origin.record(['*.txt'])
  (data / 'b.txt').unlink()
  assert origin.changed(recorded) == str(data / '*.txt')
  (data / 'a.txt').unlink()
  assert origin.changed(recorded) is None  # a machine without the corpus


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


def test_the_code_of_a_module_is_all_that_it_takes_from_the_tasks():
  pytest.importorskip('seqio')
  from tasks import poems  # noqa: F401  Registers its task.

  names = {os.path.basename(path) for path in origin.code('tasks.poems')}
  assert {'poems.py', 'registry.py', 'zh_corpora.py', 'splits.py'} <= names
  assert not names & {'couplets.py', 'mixtures.py', 'store.py'}
