"""Ends the processes of a program when one of them has ended or is lost.

The others get the message {'lost': text, 'grace': seconds, 'code': exit code}.
After `grace` seconds they end with this code.
"""

import collections
import contextlib
import os
import threading
import time
from typing import Any

from moe import stop_signals
from moe.parallel.peer import SILENT_SECONDS

# Exit code for a mistake of the user, which another attempt would repeat.
EXIT_MISTAKE = 2
# Exit code EX_UNAVAILABLE: another process is missing or was lost.
EXIT_LOST = 69
# If one process ends with an error, the others often have the same error. They
# have this many seconds to report it.
ERROR_GRACE = 5.0
# After a signal all processes save a checkpoint. If one has ended, the others
# have this many seconds to end, too.
SIGNAL_GRACE = 60.0

_ends = collections.deque(maxlen=1)


def _die(code: int, text: str) -> None:
  """Ends the process at once, even if its main thread hangs."""
  with contextlib.suppress(OSError):
    os.write(2, f'error: {text}\n'.encode())
  os._exit(code)


def left(who: str, code: int, text: str) -> dict[str, Any]:
  """Makes the message that a process has left and that the others must end.

  Args:
    who: name of the process.
    code: its exit code.
    text: why it has left; '' if it has saved everything after a signal.
  """
  if code == stop_signals.EXIT_STOPPED:
    # If this process has not saved, the others cannot save either.
    grace = ERROR_GRACE if text else SIGNAL_GRACE
    why = 'was stopped by a signal'
  elif code == EXIT_MISTAKE:  # The supervisors of all processes must end.
    why, grace = f'ended with code {code}', ERROR_GRACE
  else:
    why, grace, code = f'ended with code {code}', ERROR_GRACE, EXIT_LOST
  reason = f': {text}' if text else ''
  return {'lost': f'{who} {why}{reason}', 'grace': grace, 'code': code}


def vanished(who: str) -> dict[str, Any]:
  """The message that a process was killed."""
  text = f'{who} was killed, or its machine is lost: run the command again'
  return {'lost': text, 'grace': 0.0, 'code': EXIT_LOST}


def silent(who: str) -> dict[str, Any]:
  """The message that a process is stopped or hangs."""
  text = (
    f'{who} has given no sign of life for {SILENT_SECONDS:.0f} s: it is stopped'
    ' or hangs; end it and run the command again'
  )
  return {'lost': text, 'grace': 0.0, 'code': EXIT_LOST}


def end_after(news: dict[str, Any]) -> None:
  """Ends the process after news['grace'] seconds; ignores a second message."""
  if _ends:
    return
  _ends.append(news)

  def end() -> None:
    time.sleep(news['grace'])
    _die(news['code'], news['lost'])

  if news['grace']:
    threading.Thread(target=end, daemon=True).start()
  else:
    end()


def end_by_news(patience: float) -> None:
  """Ends the process if it hears within `patience` that another is lost.

  Args:
    patience: seconds to wait for such a message.
  """
  end = time.monotonic() + patience
  while time.monotonic() < end:
    if _ends:
      _die(_ends[0]['code'], _ends[0]['lost'])
    time.sleep(0.05)
