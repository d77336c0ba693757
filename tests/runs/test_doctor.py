"""The findings of the doctor about the hosts of a run."""

import subprocess
import sys

import pytest

from launch.configs import configuration
from moe.parallel import processes, roll_call
from moe.runs import doctor

OWN = {
  'host': 'a',
  'versions': {'jax': '1'},
  'hashes': {'poems': 'abc'},
  'findings': [(doctor.GOOD, 'disk', 'much')],
}
REQUEST = doctor.Request(None, '', '/tmp', 1.0)


def guest(clock=0.0, **changes):
  return roll_call.Guest('b', clock, OWN | {'host': 'b'} | changes)


def lines(findings, grade):
  return [str(f) for f in findings if f.grade == grade]


def test_hosts_that_agree_are_one_line_for_each_subject():
  found = doctor.compared(OWN, {1: guest()})
  assert not lines(found, doctor.BAD) and not lines(found, doctor.DOUBT)
  assert 'good   versions   jax 1 on 2 hosts' in lines(found, doctor.GOOD)


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    ({'versions': {'jax': '2'}}, 'versions   b (process 1)  jax 2, but 1 on a'),
    (
      {'hashes': {'poems': 'x'}},
      'hashes     b (process 1)  poems x, but abc on a',
    ),
    (
      {'findings': [(doctor.BAD, 'write', 'no')]},
      'write      b (process 1)  no',
    ),
  ],
)
def test_a_host_that_differs_is_named(changes, line):
  found = doctor.compared(OWN, {1: guest(**changes)})
  assert lines(found, doctor.BAD) == [f'BAD    {line}']


def test_a_clock_that_is_wrong_is_named():
  found = doctor.compared(OWN, {1: guest(clock=-60.0)})
  (line,) = lines(found, doctor.DOUBT)
  assert line.endswith('b (process 1)  differs by -60 s from a')


def test_missing_hosts_come_first_and_the_others_are_still_compared():
  def join(patience, report):
    raise roll_call.Missing(
      'process 2 of 3 not started', {1: guest(versions={'jax': '2'})}
    )

  found = doctor.visit(REQUEST, join)
  bad = lines(found, doctor.BAD)
  assert lines(found[: len(bad)], doctor.BAD) == bad
  assert 'BAD    hosts      process 2 of 3 not started' in bad
  assert any('b (process 1)' in line for line in bad)
  # Devices are not examined, since those of a pod would wait for the missing
  # host.
  assert not any(f.check == 'devices' for f in found)


@pytest.fixture
def of_two(monkeypatch):
  """Makes this process one of two."""
  monkeypatch.setenv('NUM_PROCESSES', '2')


def test_a_host_alone_does_not_start_the_devices_of_a_pod(of_two, monkeypatch):
  monkeypatch.setattr(doctor, '_devices', None)  # Devices would never start.
  found = doctor.visit(REQUEST, None)
  (doubt,) = lines(found, doctor.DOUBT)
  assert 'this is one of 2 processes' in doubt and '--hosts' in doubt
  assert not lines(found, doctor.BAD)


def test_a_process_of_several_that_have_all_come_starts_its_devices(of_two):
  found = doctor.visit(REQUEST, lambda patience, report: {})
  assert any(f.check == 'devices' for f in found)
  assert not lines(found, doctor.DOUBT)


def test_hosts_that_no_variable_tells_of_are_a_doubt(monkeypatch):
  monkeypatch.setattr(processes, '_cluster', lambda: None)
  found = doctor.visit(REQUEST, lambda patience, report: {})
  (doubt,) = lines(found, doctor.DOUBT)
  assert 'no other process is known' in doubt and 'NUM_PROCESSES' in doubt
  assert any(f.check == 'devices' for f in found)


def test_a_port_in_use_is_found():
  def join(patience, report):
    raise ValueError('port 8477 of host must be free')

  assert doctor.visit(REQUEST, join)[0].check == 'port'


def test_a_work_directory_that_cannot_be_written_is_found(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  request = REQUEST._replace(workdir=str(blocked / 'run'))
  found = doctor.visit(request, None)
  assert (found[0].grade, found[0].check) == (doctor.BAD, 'write')


def test_the_process_that_holds_a_chip_is_named(tmp_path):
  chip = tmp_path / 'accel0'
  chip.write_text('')
  program = f'f = open({str(chip)!r}); print(1, flush=True); input()'
  with subprocess.Popen(
    [sys.executable, '-c', program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as holder:
    holder.stdout.readline()
    found = doctor.holders_of([str(chip)])
    holder.kill()
  assert found[holder.pid][0] == str(chip)


def test_a_lock_that_nobody_holds_is_stale(tmp_path, monkeypatch):
  lock = tmp_path / 'lock'
  monkeypatch.setattr(doctor, '_LOCK', str(lock))
  monkeypatch.setattr(doctor, '_CHIPS', (str(tmp_path / 'accel*'),))
  lock.write_text('')
  # Without a TPU, nothing waits for the lock.
  assert not any(f[1] == 'chips' for f in doctor.examine(REQUEST)['findings'])
  (tmp_path / 'accel0').write_text('')
  (finding,) = (
    f for f in doctor.examine(REQUEST)['findings'] if f[1] == 'chips'
  )
  assert finding[0] == doctor.BAD and 'remove it' in finding[2]


@pytest.mark.parametrize(
  ('file', 'store'),
  [
    ('image_tokenizer_fashion', 'pictures/fashion_mnist_32'),
    ('fold_cpu', 'proteins/chains_1024'),
  ],
)
def test_stores_of_pictures_and_chains_are_compared(tmp_path, file, store):
  run = configuration.read([f'runs/{file}.gin'], []).run
  name = store.partition('/')[2]
  assert doctor.hashes(run, str(tmp_path)) == {name: 'none'}
  manifest = tmp_path / store / 'train/manifest.json'
  manifest.parent.mkdir(parents=True)
  manifest.write_text('{}')
  assert len(doctor.hashes(run, str(tmp_path))[name]) == 12
