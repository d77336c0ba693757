"""The files of a work directory in a bucket are mirrored on this machine.

A directory takes the place of the bucket here. Training in a bucket is in
tests/launch/test_gcs.py.
"""

import os
import pathlib

import pytest

from moe import outages
from moe.checkpoint import integrity, listing
from moe.runs import bucket, lock


@pytest.fixture
def run(tmp_path):
  """(work directory, directory that takes the place of the bucket)."""
  workdir, remote = tmp_path / 'mirror', tmp_path / 'remote'
  workdir.mkdir()
  remote.mkdir()
  (workdir / listing.BUCKET).write_text(f'{remote}\n')
  return workdir, remote


def test_a_directory_is_its_own_work_directory(tmp_path):
  assert bucket.opened(str(tmp_path)) == str(tmp_path)
  assert bucket.Mirror(str(tmp_path)).place == str(tmp_path)
  assert listing.steps_dir(tmp_path) == str(tmp_path / 'checkpoints')


def test_other_stores_are_refused():
  with pytest.raises(ValueError, match='begins with gs://'):
    bucket.opened('s3://bucket/run')


def test_checkpoints_are_looked_for_in_the_bucket(run):
  workdir, remote = run
  assert listing.steps_dir(workdir) == str(remote / 'checkpoints')
  (remote / 'checkpoints/5/meta').mkdir(parents=True)
  directory, _ = listing.locate(workdir)
  assert directory == remote / 'checkpoints'


def test_files_are_sent_when_they_have_changed(run, monkeypatch):
  workdir, remote = run
  mirror = bucket.Mirror(str(workdir))
  assert mirror.place == str(remote)
  (workdir / 'log.jsonl').write_text('1\n')
  (workdir / 'config.gin').write_text('A = 1\n')
  (workdir / 'x.tmp').write_text('half of a file')
  (workdir / 'tensorboard').mkdir()
  mirror.send()
  sent = {listing.BUCKET, 'log.jsonl', 'config.gin'}
  assert {path.name for path in remote.iterdir()} == sent
  (remote / 'config.gin').unlink()
  (workdir / 'log.jsonl').write_text('1\n2\n')
  mirror.send()
  assert (remote / 'log.jsonl').read_text() == '1\n2\n'
  assert not (remote / 'config.gin').exists()  # It has not changed since.


def test_files_of_the_bucket_replace_those_of_the_mirror(run):
  workdir, remote = run
  (remote / 'checkpoints').mkdir()
  (remote / 'running.json').write_text('{}')
  (remote / 'log.jsonl').write_text('1\n')
  (workdir / 'log.jsonl').write_text('1\n2\n')
  bucket._fetch(pathlib.Path(remote), os.fspath(workdir))
  assert (workdir / 'log.jsonl').read_text() == '1\n'
  assert not (workdir / 'checkpoints').exists()
  assert not (workdir / 'running.json').exists()


@pytest.fixture
def url(tmp_path, monkeypatch):
  """A directory that `bucket.opened` takes for a bucket."""
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(bucket, '_SCHEME', '/')
  monkeypatch.setattr(integrity, 'on_object_store', lambda place: True)
  (tmp_path / 'remote').mkdir()
  return str(tmp_path / 'remote')


def test_the_log_of_a_living_run_is_not_replaced_by_an_older_one(url):
  mirror = pathlib.Path(bucket.opened(url, is_written=True))
  (pathlib.Path(url) / 'log.jsonl').write_text('1\n')
  (mirror / 'log.jsonl').write_text('1\n2\n')
  with lock.held(url):
    with pytest.raises(lock.InUse, match='must have one run at a time'):
      bucket.opened(url, is_written=True)
    reading = pathlib.Path(bucket.opened(url))
  assert (reading / 'log.jsonl').read_text() == '1\n'
  assert (mirror / 'log.jsonl').read_text() == '1\n2\n'


def test_a_place_without_a_run_can_be_looked_at(url):
  mirror = bucket.opened(f'{url}/new')
  assert os.listdir(mirror) == [listing.BUCKET]
  assert not os.path.exists(f'{url}/new')


def test_a_new_run_in_an_emptied_bucket_has_no_old_files(
  url, tmp_path, monkeypatch
):
  mirror = pathlib.Path(bucket.opened(url, is_written=True))
  (mirror / 'skipped_batches.json').write_text('[]')
  (pathlib.Path(url) / listing.BUCKET).unlink()
  # The new run begins on another machine, and goes on here.
  for machine in ('another', 'cache'):
    monkeypatch.setenv('WUDAO_CACHE', str(tmp_path / machine))
    mirror = pathlib.Path(bucket.opened(url, is_written=True))
  assert not (mirror / 'skipped_batches.json').exists()
  assert listing.bucket_of(mirror) == url
  (mirror / 'hang.txt').write_text('stacks')
  bucket.opened(url, is_written=True)
  assert (mirror / 'hang.txt').exists()  # It is the same run.


def test_a_mirror_is_filled_after_all_processes_have_emptied_it(
  url, monkeypatch
):
  mirror = pathlib.Path(bucket.opened(url, is_written=True))
  (pathlib.Path(url) / listing.BUCKET).unlink()
  seen = []
  monkeypatch.setattr(
    bucket, '_wait_for_others', lambda _: seen.append(mirror.exists())
  )
  bucket.opened(url, is_written=True)
  assert seen == [True, False] and mirror.exists()


class Answer(Exception):
  """An error of a client with the status of an answer by HTTP."""

  def __init__(self, code):
    super().__init__(f'status {code}')
    self.code = code


@pytest.mark.parametrize(
  ('error', 'is_outage'),
  [
    (Answer(503), True),
    (Answer('429'), True),
    (Answer(401), False),
    (ConnectionResetError(), True),
    (FileNotFoundError('bucket'), False),
    (OSError('Forbidden: bucket'), False),
  ],
)
def test_a_bucket_that_fails_for_a_time_is_no_mistake(
  url, monkeypatch, error, is_outage
):
  def fail(*_):
    raise error

  monkeypatch.setattr(bucket, '_prepare', fail)
  with pytest.raises(ValueError, match='can.* be used') as found:
    bucket.opened(url, is_written=True)
  assert outages.is_outage(found.value) == is_outage


def test_files_that_the_bucket_does_not_take_are_an_outage(run):
  workdir, remote = run
  (remote / 'log.jsonl').mkdir()  # A directory is in the way.
  (workdir / 'log.jsonl').write_text('1\n')
  with pytest.raises(outages.Outage, match='could not be written'):
    bucket.Mirror(str(workdir)).send()
