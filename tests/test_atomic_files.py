"""A written file is complete, either old or new; no temporary file remains."""

import pytest

from moe import atomic_files


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path):
  path = tmp_path / 'notes.json'
  atomic_files.write_file(path, b'old')
  atomic_files.write_json(path, {'title': '春'})
  assert path.read_text(encoding='utf-8') == '{\n  "title": "春"\n}'
  assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
  path = tmp_path / 'notes.txt'
  atomic_files.write_file(path, 'old')
  with pytest.raises(OSError, match='full'), atomic_files.replacing(path) as f:
    f.write(b'new')
    raise OSError('the disk is full')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_there_while_the_new_one_is_written(tmp_path):
  path = tmp_path / 'notes.txt'
  atomic_files.write_file(path, 'old')
  with atomic_files.replacing(path) as f:
    f.write(b'new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new'


def test_a_file_can_be_read_by_whoever_the_umask_lets(tmp_path):
  (tmp_path / 'plain').write_text('')
  atomic_files.write_file(tmp_path / 'written', '')
  plain, written = (
    (tmp_path / name).stat().st_mode for name in ('plain', 'written')
  )
  assert written == plain


def test_what_killed_processes_have_left_is_removed(tmp_path):
  left = tmp_path / f'run.json.{"0a" * 16}.tmp'
  others = [tmp_path / name for name in ('run.json', 'mine.tmp', 'a.tmp')]
  for path in (left, *others):
    path.write_text('{}')
  atomic_files.sweep(tmp_path)
  assert sorted(tmp_path.iterdir()) == sorted(others)
