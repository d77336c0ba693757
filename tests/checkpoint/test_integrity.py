"""Any damage of a sealed directory is detected."""

import errno
import os
import pathlib

import pytest

from moe.checkpoint import integrity


def files_of(directory):
  return sorted(p for p in pathlib.Path(directory).rglob('*') if p.is_file())


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete'])
def test_damage_of_any_file_is_found_and_named(copy, damage):
  files = files_of(copy / '2')
  assert len(files) >= 8
  for path in files:
    content = path.read_bytes()
    if damage == 'delete':
      path.unlink()
    elif damage == 'truncate':
      path.write_bytes(content[:-1])
    else:
      middle = len(content) // 2
      flipped = bytes([content[middle] ^ 1])
      path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    problems = integrity.check(copy / '2')
    assert len(problems) >= 1, f'{damage} of {path} went unseen'
    assert str(path.relative_to(copy / '2')) in problems[0]
    path.write_bytes(content)
  assert integrity.check(copy / '2') == []


def test_every_byte_of_the_manifest_counts(copy):
  path = copy / '2' / integrity.NAME
  content = path.read_bytes()
  for place in range(0, len(content), 7):
    flipped = bytes([content[place] ^ 32])  # A letter changes only its case.
    path.write_bytes(content[:place] + flipped + content[place + 1 :])
    assert integrity.check(copy / '2'), f'byte {place} went unseen'


@pytest.mark.parametrize('number', [errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_that_cannot_be_read_now_is_not_damaged(
  copy, monkeypatch, number
):
  def fail(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(integrity, '_digest', fail)
  with pytest.raises(OSError, match=os.strerror(number)):
    integrity.check(copy / '2')


def test_a_bad_sector_is_damage(copy, monkeypatch):
  def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(integrity, '_digest', fail)
  assert 'cannot be read' in integrity.check(copy / '2')[0]


def test_every_directory_is_flushed(tmp_path, monkeypatch):
  # `params` has no file of its own.
  inner = tmp_path / 'step/params/layers'
  inner.mkdir(parents=True)
  (inner / 'array').write_text('1')
  flushed = set()
  monkeypatch.setattr(integrity, 'sync', lambda path: flushed.add(str(path)))
  integrity.seal(tmp_path / 'step')
  folders = {str(tmp_path / 'step'), str(inner.parent), str(inner)}
  assert flushed == folders | {f'{tmp_path}/step/{integrity.NAME}'}
