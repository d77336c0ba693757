"""A log is read from its end, and only as far as needed."""

import io
import json

import pytest

from moe.train import progress, record_log
from tests.train import programs

LENGTHS = [3, 200, 0, 1, 64, 1000, 7, 65]


def line(step, length=0):
  return json.dumps({'step': step, 'text': 'x' * length}).encode() + b'\n'


def steps(path):
  return [record['step'] for record in record_log.newest_first(path)]


@pytest.mark.parametrize('block', [1, 7, 64, 2**16])
def test_records_are_read_backwards_in_blocks_of_any_size(
  tmp_path, monkeypatch, block
):
  monkeypatch.setattr(record_log, 'BLOCK', block)
  path = tmp_path / 'log'
  assert steps(path) == []
  path.write_bytes(b''.join(line(i, n) for i, n in enumerate(LENGTHS)))
  records = record_log.read(path)
  assert [len(r['text']) for r in records] == LENGTHS
  assert list(record_log.newest_first(path)) == records[::-1]


@pytest.mark.parametrize('block', [5, 2**16])
@pytest.mark.parametrize('torn', [b'', b'{"st', b'{"step": 9}', b'\0\0\n\0'])
def test_what_a_kill_has_left_at_the_end_is_no_record(
  tmp_path, monkeypatch, block, torn
):
  monkeypatch.setattr(record_log, 'BLOCK', block)
  path = tmp_path / 'log'
  path.write_bytes(line(1) + line(2) + torn)
  assert steps(path) == [2, 1]
  assert [r['step'] for r in record_log.read(path)] == [1, 2]
  record_log.RecordLog(path, 9).close()
  assert path.read_bytes() == line(1) + line(2)


@pytest.mark.parametrize('block', [5, 2**16])
def test_a_log_is_cut_off_after_the_restored_step(tmp_path, monkeypatch, block):
  monkeypatch.setattr(record_log, 'BLOCK', block)
  path = tmp_path / 'log'
  path.write_bytes(b''.join(line(2 * i, n) for i, n in enumerate(LENGTHS)))
  log = record_log.RecordLog(path, 5)
  assert log.last['step'] == 4
  assert steps(path) == [4, 2, 0]
  path.write_bytes(line(7))
  assert record_log.RecordLog(path, 5).last is None
  assert not path.exists()


class Counting(io.FileIO):
  """A file that counts the bytes that are read from it."""

  read_bytes = 0

  def read(self, size=-1):
    data = super().read(size)
    Counting.read_bytes += len(data)
    return data


def test_a_resumed_run_reads_a_bounded_part_of_its_log(tmp_path, monkeypatch):
  def record(step):
    time = {'seconds': 1.0, 'elapsed': float(step)}
    layers = {'load': [[0.5] * 100]}
    return {'step': step, 'tokens': step, 'layers': layers, 'time': time}

  def read_by_a_resumed_run(steps):
    workdir = tmp_path / str(steps)
    workdir.mkdir()
    (workdir / 'log.jsonl').write_text(
      ''.join(f'{json.dumps(record(s))}\n' for s in range(1, steps + 1))
    )
    Counting.read_bytes = 0
    shown = progress.Progress(
      workdir, programs.LANGUAGE, 10**6, steps - 5, stream=io.StringIO()
    )
    shown.close()
    assert (workdir / 'log.jsonl').read_text().count('\n') == steps - 5
    return Counting.read_bytes

  monkeypatch.setattr(record_log, 'open', Counting, raising=False)
  monkeypatch.setattr(progress._Board, 'step', lambda *_: None)
  short, long = map(read_by_a_resumed_run, (1000, 8000))
  assert 0 < long <= short
