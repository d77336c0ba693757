"""What every verb does before and around its work: JAX, log, memory, errors."""

import contextlib
import ctypes
import glob
import logging
import os
import sys
from collections.abc import Callable, Iterator

from moe.data.cache_dir import default_cache_dir

# What a user can mend; the exit code of a command that was not right.
EXIT_USER = 2
# Device files of TPUs and of NVIDIA GPUs.
_ACCELERATORS = ('/dev/accel*', '/dev/vfio/*', '/dev/nvidia[0-9]*')
# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def log(message: str) -> None:
  """One line for people; standard output is for the result."""
  print(message, file=sys.stderr, flush=True)


class _Log(logging.Handler):
  """Prints what the library says, as `log` does."""

  def emit(self, record: logging.LogRecord) -> None:
    log(self.format(record))


@contextlib.contextmanager
def show_log() -> Iterator[None]:
  """Prints what `moe` and `tasks` log, without what other libraries log."""
  loggers = [logging.getLogger(name) for name in ('moe', 'tasks')]
  before = [(logger.level, logger.propagate) for logger in loggers]
  handler = _Log()
  for logger in loggers:
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Else it is printed again where a library gives the root logger a handler.
    logger.propagate = False
  try:
    yield
  finally:
    for logger, (level, propagate) in zip(loggers, before, strict=True):
      logger.removeHandler(handler)
      logger.setLevel(level)
      logger.propagate = propagate


def run(verb: Callable[[], int]) -> int:
  """Runs a verb; what the user can mend is one sentence and code 2.

  Args:
    verb: returns the exit code.
  """
  with show_log():
    try:
      return verb()
    except (ValueError, OSError) as error:
      log(f'error: {" ".join(str(error).split())}')
      return EXIT_USER


def set_up_jax() -> None:
  """Joins other processes; keeps memory, and compiled programs if none does."""
  # Here, since --help and errors of configuration need no JAX.
  import jax

  from moe.parallel import multihost

  if _is_cpu_alone():
    # Before there are threads: each begins with memory of its own otherwise.
    keep_freed_memory()
  multihost.initialize()
  if jax.config.jax_compilation_cache_dir is None:
    compiled = os.path.join(default_cache_dir(), 'compiled')
    jax.config.update('jax_compilation_cache_dir', compiled)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def _is_cpu_alone() -> bool:
  """Whether JAX will run on CPUs, told without starting it."""
  platforms = os.environ.get('JAX_PLATFORMS')
  if platforms:
    return platforms == 'cpu'
  return not any(glob.glob(pattern) for pattern in _ACCELERATORS)


def keep_freed_memory() -> None:
  """Tells glibc's malloc to keep what is freed; elsewhere does nothing.

  XLA:CPU asks for the temporary memory of a step at its start, hundreds of
  megabytes at a time, and frees it at its end. By default malloc maps and
  unmaps each such block, and the kernel clears every page of it again: a fifth
  of a training step on two cores. The process holds on to what it once used.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # another C library
  # Only one arena can grow over any size without mapping, the main one.
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, -1)  # never
