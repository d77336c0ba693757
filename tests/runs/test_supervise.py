"""The supervisor decides by the exit code whether a command runs again."""

import json
import pathlib
import signal
import sys

import pytest

from moe import outages
from moe.data import cache_dir
from moe.parallel import farewell
from moe.runs import supervise

FAST = supervise.Limits(first_wait=0.0)


@pytest.mark.parametrize(
  ('code', 'outcome', 'wait', 'last_code'),
  [
    (0, 'done', None, 0),
    (2, 'mistake', None, 2),
    (75, 'preempted', 0.0, 75),
    (1, 'crash', 10.0, 1),
    (-signal.SIGSEGV, 'crash', 10.0, -signal.SIGSEGV),
    (-signal.SIGKILL, 'killed', 10.0, -signal.SIGKILL),
    (farewell.EXIT_LOST, 'lost', 10.0, farewell.EXIT_LOST),
    (outages.EXIT_OUTAGE, 'outage', 10.0, outages.EXIT_OUTAGE),
    (128 + signal.SIGTERM, 'killed', 10.0, 128 + signal.SIGTERM),
  ],
)
def test_the_exit_code_says_what_follows(code, outcome, wait, last_code):
  decision = supervise.Policy(supervise.Limits()).after(code, 7, 0.0)
  assert decision[:3] == (outcome, wait, last_code)


def test_the_third_crash_at_the_same_step_is_the_last():
  policy = supervise.Policy(FAST)
  waits = [policy.after(1, step, 0.0).wait for step in (7, 9, 7)]
  assert None not in waits
  last = policy.after(1, 7, 0.0)
  assert last.wait is None and last.code == supervise.EXIT_GIVEN_UP
  assert '3 times after step 7' in last.reason


def test_what_comes_from_outside_does_not_count_as_a_crash():
  policy = supervise.Policy(FAST)
  for code in (-9, 75, 137, 74, 69, -15, 1, -9, 74, 74, 75, 1):
    assert policy.after(code, 7, 0.0).wait is not None


def test_the_step_of_a_run_in_a_bucket_is_in_its_mirror(tmp_path, monkeypatch):
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  url = 'gs://bucket/run'
  assert supervise.last_step(url) == 0
  log = pathlib.Path(cache_dir.mirror(url)) / 'log.jsonl'
  log.parent.mkdir(parents=True)
  log.write_text('{"step": 7}\n')
  assert supervise.last_step(url) == 7
  monkeypatch.setenv('PROCESS_ID', '1')  # Process 1 writes no log.
  assert supervise.last_step(url) is None
  assert supervise.last_step(str(log.parent)) == 7


def test_crashes_at_an_unknown_step_never_end_the_attempts():
  policy = supervise.Policy(supervise.Limits())
  waits = [policy.after(1, None, 0.0).wait for _ in range(4)]
  assert waits == [10.0] * 4


def test_the_wait_doubles_until_an_attempt_gets_further():
  policy = supervise.Policy(supervise.Limits(longest_wait=30.0))
  steps = (5, 5, 5, 5, 6)
  waits = [policy.after(-9, step, 0.0).wait for step in steps]
  assert waits == [10, 20, 30, 30, 10]


def test_an_hour_has_room_for_a_fixed_number_of_crashes():
  policy = supervise.Policy(supervise.Limits(2, first_wait=0.0))
  # Two crashes per hour are allowed. After the second crash, at 200, the wait
  # lasts until the first crash, at 100, is an hour old: 100 + 3600 - 200
  # seconds. After the third crash, at 3750, it lasts until the second crash is
  # an hour old: 200 + 3600 - 3750 seconds.
  times = (100.0, 200.0, 3750.0, 9000.0)
  waits = [policy.after(1, i, now).wait for i, now in enumerate(times)]
  assert waits == [0, 3500, 50, 0]


@pytest.mark.parametrize(
  'command', [['x', '--workdir=a b'], ['x', '--workdir', 'a b']]
)
def test_the_work_directory_is_that_of_the_command(command):
  assert supervise.workdir_of(command) == 'a b'
  assert supervise.workdir_of(['x', 'workdir=a']) is None


# Each attempt trains one step, and ends with the next exit code of a list.
ATTEMPT = """
import json, os, signal, sys
workdir, codes = sys.argv[1], json.loads(sys.argv[2])
path = os.path.join(workdir, 'log.jsonl')
step = sum(1 for _ in open(path)) if os.path.exists(path) else 0
with open(path, 'a') as f:
  f.write(json.dumps({'step': step + 1}) + '\\n')
code = codes[step]
if code < 0:
  os.kill(os.getpid(), -code)
sys.exit(code)
"""


def attempts(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_command_is_run_until_it_ends_well(tmp_path):
  log = tmp_path / 'logs' / 'attempts.jsonl'
  command = [sys.executable, '-c', ATTEMPT, str(tmp_path), '[75, 1, -9, 0, 1]']
  assert supervise.supervise(command, str(tmp_path), str(log), FAST) == 0
  found = attempts(log)
  assert [a['outcome'] for a in found] == [
    'preempted', 'crash', 'killed', 'done'
  ]  # fmt: skip
  assert [(a['step_before'], a['step']) for a in found] == [
    (0, 1), (1, 2), (2, 3), (3, 4)
  ]  # fmt: skip
  assert [a['attempt'] for a in found] == [1, 2, 3, 4]
  assert found[-1]['next_attempt_in'] is None


def test_a_mistake_of_the_user_is_not_repeated(tmp_path):
  log = tmp_path / 'attempts.jsonl'
  command = ['sh', '-c', 'exit 2']
  assert supervise.supervise(command, str(tmp_path), str(log), FAST) == 2
  assert [a['code'] for a in attempts(log)] == [2]


def test_a_command_that_is_stopped_is_killed_and_runs_again(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(supervise, '_LOOK_SECONDS', 0.05)
  monkeypatch.setattr(supervise, '_LOOKS', 4)
  log, once = tmp_path / 'attempts.jsonl', tmp_path / 'once'
  script = f'test -e "{once}" && exit 0; touch "{once}"; kill -STOP $$'
  command = ['sh', '-c', script]
  assert supervise.supervise(command, str(tmp_path), str(log), FAST) == 0
  first, second = attempts(log)
  assert (first['outcome'], first['code']) == ('stopped', -signal.SIGKILL)
  assert second['outcome'] == 'done'


def test_a_command_that_goes_on_again_is_not_killed(tmp_path, monkeypatch):
  monkeypatch.setattr(supervise, '_LOOK_SECONDS', 0.05)
  monkeypatch.setattr(supervise, '_LOOKS', 3)
  found = iter([True, True, False, True, True])
  monkeypatch.setattr(supervise, '_is_stopped', lambda _: next(found, False))
  log = tmp_path / 'attempts.jsonl'
  assert (
    supervise.supervise(['sleep', '0.5'], str(tmp_path), str(log), FAST) == 0
  )
