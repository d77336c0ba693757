"""Named places in the code at which a test or a person can make a run fail.

  WUDAO_FAILPOINT='commit.sealed=kill@2' python -m launch.train ...

This kills the process when it reaches `commit.sealed` for the second time.
Requests are separated by commas. Without the variable, places do nothing.

`kill` sends SIGKILL to the process, `term` sends SIGTERM, and `stop` sends
SIGSTOP. `hang` makes the thread wait for ever. The name of a system error, such
as ENOSPC (no space on the disk) or EROFS (a read-only file system), raises this
error.

The idea is that of the `fail` crate for Rust, https://docs.rs/fail.
"""

import collections
import errno
import os
import signal
import threading

VARIABLE = 'WUDAO_FAILPOINT'
# Place -> what is done, and what is not, when a run reaches the place.
PLACES = {
  'run.start': 'the flags and the configuration are checked',
  'run.compile': 'the state is there, the step is not compiled',
  'run.read': 'the reading thread is about to read a batch',
  'run.step': 'a step is under way on the devices',
  'run.evaluate': 'an evaluation has read a batch',
  'run.score': 'a restored step has been evaluated, which is not in the log',
  'log.append': 'a record is about to be written',
  'log.appended': 'a record has been written',
  'save.begin': 'the directory of a step is about to be made',
  'save.arrays': 'the arrays are being written, the record is not',
  'save.written': 'all arrays are written, but not merged',
  'save.merged': 'the arrays are merged',
  'commit.whole': 'everything is written, but not hashed',
  'commit.hashed': 'the hashes are computed, but not written',
  'commit.sealed': 'the hashes are on the disk, the step is not visible',
  'commit.visible': 'the step is visible, its directory is not flushed',
  'commit.done': 'the step is committed, the old ones are still there',
  'remove.begin': 'an old step is about to become invisible',
  'remove.hidden': 'an old step is invisible, all its files are there',
  'remove.half': 'the first part of an old step is removed',
  'late.written': 'late metrics are written, but not renamed',
  'file.written': 'a temporary file is written, but not renamed',
}
_SIGNALS = {
  'kill': signal.SIGKILL,
  'term': signal.SIGTERM,
  'stop': signal.SIGSTOP,
}

_reached = collections.Counter()
_lock = threading.Lock()


def reach(place: str) -> None:
  """Does what the environment variable requests for a place.

  Args:
    place: one of `PLACES`.

  Raises:
    ValueError: if a request is invalid.
    OSError: if a system error is requested.
  """
  if VARIABLE not in os.environ:
    return
  assert place in PLACES, place
  with _lock:  # Two threads may reach a place at the same time.
    _reached[place] += 1
    count = _reached[place]
  action = _requests(os.environ[VARIABLE]).get((place, count))
  if action is None:
    return
  if action == 'hang':
    threading.Event().wait()
  if action in _SIGNALS:
    os.kill(os.getpid(), _SIGNALS[action])
    return
  number = getattr(errno, action)
  raise OSError(number, os.strerror(number))


def _requests(text: str) -> dict[tuple[str, int], str]:
  """Returns (place, n) -> action at the nth time that a run is at the place."""
  found = {}
  for request in text.split(','):
    place, _, rest = request.partition('=')
    action, _, count = rest.partition('@')
    if place not in PLACES:
      raise ValueError(
        f'{VARIABLE}={request} must name one of these places:'
        f' {", ".join(PLACES)}.'
      )
    is_error = action.isupper() and hasattr(errno, action)
    if not (is_error or action == 'hang' or action in _SIGNALS):
      raise ValueError(
        f'{VARIABLE}={request} must be PLACE=ACTION, with kill, term, stop,'
        ' hang or the name of an error such as ENOSPC as its action.'
      )
    if not (count or '1').isdecimal():
      raise ValueError(f'{VARIABLE}={request} must end in a number.')
    found[place, int(count or 1)] = action
  return found
