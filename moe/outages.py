"""Tells failures of a disk or network that may pass from the user's mistakes.

Another attempt may succeed after such a failure, so the supervisor starts one.
After a mistake it starts none.
"""

import errno
import re

# Exit code EX_IOERR: storage has failed, and may work again later.
EXIT_OUTAGE = 74
# System errors that only the user can remove. A full disk is among them.
_MISTAKES = {
  errno.EACCES,
  errno.EADDRINUSE,
  errno.EADDRNOTAVAIL,
  errno.EDQUOT,
  errno.EEXIST,
  errno.EFBIG,
  errno.EINVAL,
  errno.EISDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENOENT,
  errno.ENOEXEC,
  errno.ENOSPC,
  errno.ENOTDIR,
  errno.ENOTEMPTY,
  errno.EOPNOTSUPP,
  errno.EPERM,
  errno.EPIPE,
  errno.EROFS,
  errno.ESPIPE,
  errno.EXDEV,
}
# Words of errors without such a number. A collective fails with Gloo in its
# text; TensorStore's text begins with the code of the answer.
_WORDS = re.compile('Gloo|^(UNAVAILABLE|DEADLINE_EXCEEDED)')


class Outage(ValueError):
  """Storage has failed, and another attempt may succeed."""


def system_error(error: BaseException) -> int | None:
  """The number of the system error that an exception is about, if it has one.

  TensorStore gives the number in the text of its errors.
  """
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return int(code.group(1)) if code else getattr(error, 'errno', None)


def reason(error: BaseException) -> str:
  """What an exception says, on one line of at most 200 characters."""
  return ' '.join(str(error).split())[:200] or type(error).__name__


def is_outage(error: BaseException) -> bool:
  """Whether an exception, or the one that has caused it, may pass by itself.

  The first exception of the chain that has the number of a system error
  decides.
  """
  link = error
  while link is not None:
    if isinstance(link, Outage):
      return True
    number = system_error(link)
    if isinstance(number, int) and number > 0:
      return number not in _MISTAKES
    is_known = isinstance(link, ConnectionError | TimeoutError)
    if is_known or _WORDS.search(str(link)):
      return True
    hidden = None if link.__suppress_context__ else link.__context__
    link = link.__cause__ or hidden
  return False
