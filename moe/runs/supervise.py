"""Runs a command again after preemptions and crashes, until it has finished.

The exit code of an attempt decides. After code 0 the command has finished.
After code 75 (preempted) the command starts again at once. Code 2 is a mistake
of the user, so another attempt would fail in the same way. Any other code is a
crash, except code 69 (another process was lost), code 74 (a disk or the network
failed) and signals from outside, such as a kill. After a crash, code 69, code
74 or such a signal, the supervisor waits before the next attempt; the wait
grows until an attempt gets further. By default, the third crash at the same
step ends the attempts, since a cause that repeats does not go away.

A command that stays stopped (SIGSTOP) is killed, and the next attempt follows.

This file imports neither JAX nor the code of the command. So the supervisor
needs little memory.
"""

import collections
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from moe import outages, stop_signals
from moe.data import cache_dir
from moe.parallel import farewell
from moe.train import record_log

_logger = logging.getLogger(__name__)

EXIT_MISTAKE = farewell.EXIT_MISTAKE
# Exit code if the command crashes again and again, so that a person must help.
EXIT_GIVEN_UP = 1
LOG = 'attempts.jsonl'
# Variables with the number of a process, from us, Slurm and GKE.
_NUMBERS = 'PROCESS_ID', 'SLURM_PROCID', 'TPU_WORKER_ID', 'MEGASCALE_SLICE_ID'
_HOUR = 3600.0
# A process that is stopped never ends. So the supervisor looks at the state of
# the command every `_LOOK_SECONDS`, and kills it if so many looks in a row find
# it stopped. Looks are counted, since the time in which the supervisor itself
# is stopped (Ctrl-Z stops both) must not count.
_LOOK_SECONDS = 1.0
_LOOKS = 60
# Signals that a process causes by an error of its own. All other signals come
# from outside.
_OWN_SIGNALS = (
  signal.SIGABRT,
  signal.SIGBUS,
  signal.SIGFPE,
  signal.SIGILL,
  signal.SIGSEGV,
)


@dataclasses.dataclass(frozen=True)
class Limits:
  """Settings for the number of attempts and for the time between them.

  Attributes:
    crashes_per_hour: limit of crashes in an hour. At the limit, the next
      attempt waits until the first of these crashes is an hour old.
    crashes_at_step: number of crashes at the same step that ends the attempts.
    first_wait: seconds of the first wait. The wait doubles after each attempt
      that gets no further than earlier ones.
    longest_wait: seconds of the longest wait that doubling can reach.
  """

  crashes_per_hour: int = 6
  crashes_at_step: int = 3
  first_wait: float = 10.0
  longest_wait: float = 600.0

  def __post_init__(self):
    for name, value in vars(self).items():
      least = 1 if isinstance(value, int) else 0
      if value < least:
        raise ValueError(f'--{name}={value} must be at least {least}.')


class Decision(NamedTuple):
  """The outcome of an attempt, and whether another attempt follows.

  Attributes:
    outcome: 'done', 'preempted', 'mistake', 'crash', 'killed', 'stopped' (and
      then killed by the supervisor), 'outage' (a disk or the network failed) or
      'lost', which means that another process of the program was killed or is
      missing.
    wait: seconds until the next attempt; None if there is none.
    code: exit code of the supervisor if there is no further attempt.
    reason: the reason as text for people.
  """

  outcome: str
  wait: float | None
  code: int
  reason: str


class Policy:
  """Decides after each attempt whether and when there is another one."""

  def __init__(self, limits: Limits):
    self._limits = limits
    self._crashes_at = collections.Counter()
    self._crash_times = collections.deque()
    self._furthest = -1
    # How often the next wait is doubled. An attempt that gets further resets
    # this number.
    self._stuck = 0

  def after(self, code: int, step: int | None, now: float) -> Decision:
    """Decides what follows after an attempt.

    Args:
      code: return code of `subprocess`; negative after a signal.
      step: the last step in the log of the run; None if it is not known.
      now: seconds on a monotonic clock.
    """
    if code == 0:
      return Decision('done', None, 0, 'the command has ended')
    if code == EXIT_MISTAKE:
      reason = 'code 2 is a mistake that another attempt would repeat'
      return Decision('mistake', None, code, reason)
    if code == stop_signals.EXIT_STOPPED:
      self._stuck = 0
      return Decision('preempted', 0.0, code, 'everything was saved')
    wait = self._back_off(step)
    number = signal_of(code)
    if number is not None and number not in _OWN_SIGNALS:
      return Decision('killed', wait, code, f'{_name(number)} from outside')
    if code == farewell.EXIT_LOST:
      return Decision('lost', wait, code, 'another process was lost')
    if code == outages.EXIT_OUTAGE:
      return Decision('outage', wait, code, 'a disk or the network failed')
    reason = f'code {code}' if number is None else _name(number)
    times = 0
    if step is not None:
      self._crashes_at[step] += 1
      times = self._crashes_at[step]
      reason += f', {times} times' if times > 1 else ''
      reason += f' after step {step:,}'
    if times >= self._limits.crashes_at_step:
      reason += ': read its log before you start it again'
      return Decision('crash', None, EXIT_GIVEN_UP, reason)
    return Decision('crash', max(wait, self._until_allowed(now)), code, reason)

  def _back_off(self, step: int | None) -> float:
    """Seconds to wait; the time doubles until an attempt gets further.

    If the step is not known, the wait does not grow: process 0 waits longer.
    """
    if step is None:
      return self._limits.first_wait
    if step > self._furthest:
      self._furthest, self._stuck = step, 0
    # The bound of the exponent avoids an overflow after very many attempts.
    doubled = self._limits.first_wait * 2.0 ** min(self._stuck, 30)
    self._stuck += 1
    return min(doubled, self._limits.longest_wait)

  def _until_allowed(self, now: float) -> float:
    """Counts a crash; returns the wait in seconds by `crashes_per_hour`."""
    times = self._crash_times
    times.append(now)
    while times[0] <= now - _HOUR:
      times.popleft()
    if len(times) < self._limits.crashes_per_hour:
      return 0.0
    return times[-self._limits.crashes_per_hour] + _HOUR - now


def signal_of(code: int) -> int | None:
  """The number of the signal that ended a process; None if there was none.

  For a signal, `subprocess` gives a code below 0, and a shell gives a code
  above 128.
  """
  if code < 0:
    return -code
  return code - 128 if 128 < code <= 128 + signal.SIGRTMAX else None


def _name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'


def workdir_of(command: Sequence[str]) -> str | None:
  """The value of --workdir in a command; None if there is none."""
  for i, part in enumerate(command):
    if part.startswith('--workdir='):
      return part.partition('=')[2]
    if part == '--workdir' and i + 1 < len(command):
      return command[i + 1]
  return None


def places(
  command: Sequence[str], workdir: str | None, log: str | None
) -> tuple[str, str]:
  """The work directory of a command, and the file of its attempts.

  Args:
    command: the program and its arguments.
    workdir: the directory if the user gave one; else the command names it.
    log: the file if the user gave one; else it is in the directory.

  Raises:
    ValueError: if there is no directory, or nothing can be appended there.
  """
  workdir = workdir or workdir_of(command)
  if workdir is None:
    raise ValueError(
      'COMMAND must have --workdir=DIR, where its log tells how far it got: add'
      ' it, or give --workdir=DIR before the --.'
    )
  if '://' in workdir and not log:
    raise ValueError(
      f'--log=FILE must name a file on this host, since {workdir} is an object'
      ' store, to which nothing can be appended.'
    )
  return workdir, log or os.path.join(workdir, LOG)


def last_step(workdir: str) -> int | None:
  """The last step in a run's log; 0 without a log; None if it is not known.

  With a URL, only the machine of process 0 has the log of the present attempt.
  """
  if '://' in workdir:
    if any(os.environ.get(name, '0') != '0' for name in _NUMBERS):
      return None
    workdir = cache_dir.mirror(workdir)
  newest = record_log.newest_first(os.path.join(workdir, 'log.jsonl'))
  return next(newest, {'step': 0})['step']


def supervise(
  command: Sequence[str], workdir: str, log: str, limits: Limits
) -> int:
  """Runs a command until it ends well, or until no attempt can help.

  If the supervisor gets SIGTERM, SIGHUP or Ctrl-C, it passes the signal on to
  the command and starts no further attempt. So stopping the supervisor stops
  the command.

  Args:
    command: the program and its arguments.
    workdir: directory of the run, which holds log.jsonl.
    log: file to which each attempt adds a line of JSON.
    limits: limits for the number of attempts and the time between them.

  Returns:
    The exit code: 0 if the command has finished, 2 after a mistake of the user,
    1 if the command crashes again and again. After a signal to the supervisor
    it is the exit code of the command, or 75 if no command ran.

  Raises:
    OSError: if the command cannot be started, or `log` cannot be written.
  """
  policy, child = Policy(limits), _Child()
  os.makedirs(os.path.dirname(os.path.abspath(log)), exist_ok=True)
  attempt = _count_lines(log)
  with stop_signals.handled(child.pass_on, listens=False):
    while True:
      attempt += 1
      record = {
        'attempt': attempt,
        'host': socket.gethostname(),
        'begin': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        'step_before': last_step(workdir),
      }
      begin = time.monotonic()
      code = child.run(command)
      now, step = time.monotonic(), last_step(workdir)
      decision = policy.after(code, step, now)
      if child.was_stopped:
        reason = f'it was stopped for {_LOOKS * _LOOK_SECONDS:.0f} s'
        decision = decision._replace(outcome='stopped', reason=reason)
      if child.signal is not None and decision.wait is not None:
        reason = f'{child.signal} to the supervisor'
        decision = decision._replace(wait=None, reason=reason)
      record |= {
        'seconds': round(now - begin, 3),
        'code': code,
        'step': step,
        **decision._asdict(),
      }
      del record['wait']
      _append(log, record | {'next_attempt_in': decision.wait})
      _logger.info(_sentence(attempt, decision))
      if decision.wait is None:
        return _shell_code(decision.code)
      if child.stopped.wait(decision.wait):
        return stop_signals.EXIT_STOPPED


class _Child:
  """The process of the present attempt.

  Attributes:
    stopped: an event, which is set when a signal to stop has arrived.
    signal: name of this signal; None if there was none.
    was_stopped: whether the process was killed because it was stopped.
  """

  def __init__(self):
    self.stopped = threading.Event()
    self.signal = None
    self.was_stopped = False
    self._process = None

  def run(self, command: Sequence[str]) -> int:
    """Runs the command; returns its exit code, below 0 after a signal."""
    self.was_stopped, has_ended = False, threading.Event()
    self._process = subprocess.Popen(command)
    if self.stopped.is_set():  # A signal arrived while the process started.
      self.pass_on(self.signal)
    look = threading.Thread(
      target=self._look, args=(self._process, has_ended), daemon=True
    )
    look.start()
    try:
      return self._process.wait()
    finally:
      has_ended.set()
      look.join()
      self._process = None

  def _look(
    self, process: subprocess.Popen, has_ended: threading.Event
  ) -> None:
    """Kills the process if it stays stopped."""
    looks = 0
    while looks < _LOOKS and not has_ended.wait(_LOOK_SECONDS):
      looks = looks + 1 if _is_stopped(process.pid) else 0
    if looks == _LOOKS:
      self.was_stopped = True
      process.kill()

  def pass_on(self, name: str) -> None:
    """Sends the signal of this name to the process."""
    self.signal = name
    self.stopped.set()
    numbers = {text: number for number, text in stop_signals.NAMES.items()}
    if self._process is not None:
      self._process.send_signal(numbers[name])


def _is_stopped(process: int) -> bool:
  """Whether a process is stopped (SIGSTOP); False if this is not known."""
  try:
    with open(f'/proc/{process}/stat', 'rb') as f:
      # The second field is a name in parentheses, with any characters in it.
      return f.read().rpartition(b')')[2].split()[0] == b'T'
  except OSError:  # The process has just ended, or this is not Linux.
    return False


def _shell_code(code: int) -> int:
  """The exit code that a shell gives: after a signal, 128 + its number."""
  return 128 - code if code < 0 else code


def _sentence(attempt: int, decision: Decision) -> str:
  text = f'attempt {attempt}: {decision.outcome}, {decision.reason}; '
  if decision.wait is None:
    return text + 'no further attempt'
  if decision.wait == 0:
    return text + 'the next attempt follows at once'
  return text + f'the next attempt follows in {decision.wait:.0f} s'


def _count_lines(path: str) -> int:
  """The number of attempts that a log file already has."""
  if not os.path.exists(path):
    return 0
  with open(path, 'rb') as f:
    return sum(1 for _ in f)


def _append(path: str, record: dict[str, Any]) -> None:
  """Adds one line to a file by a single write, so that no kill can split it."""
  descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  try:
    os.write(descriptor, json.dumps(record).encode() + b'\n')
  finally:
    os.close(descriptor)
