"""What every verb does before and around its work: JAX, log, memory, errors."""

import contextlib
import ctypes
import glob
import logging
import os
import sys
from collections.abc import Callable, Iterator

from moe import stop_signals
from moe.data.cache_dir import default_cache_dir

# The exit code for an error that the user can fix.
EXIT_USER = 2
# Device files of TPUs and of NVIDIA GPUs.
_ACCELERATORS = ('/dev/accel*', '/dev/vfio/*', '/dev/nvidia[0-9]*')
# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def log(message: str) -> None:
  """Prints one line for people; standard output is for the result."""
  print(message, file=sys.stderr, flush=True)


class _Log(logging.Handler):
  """Prints the log of the library, as `log` does."""

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
    # If a library gives the root logger a handler, that must not print it too.
    logger.propagate = False
  try:
    yield
  finally:
    for logger, (level, propagate) in zip(loggers, before, strict=True):
      logger.removeHandler(handler)
      logger.setLevel(level)
      logger.propagate = propagate


def run(verb: Callable[[], int]) -> int:
  """Runs a verb; an error that the user can fix is one sentence and code 2.

  Ctrl-C, SIGTERM and SIGHUP end in one sentence and code 75; training saves
  before it ends. A second Ctrl-C ends the process at once.

  Args:
    verb: returns the exit code.
  """
  with show_log():
    try:
      with stop_signals.raising():
        return verb()
    except stop_signals.Stopped as stop:
      log(f'{stop}: ended; run it again to go on.')
      return stop_signals.EXIT_STOPPED
    except (ValueError, OSError) as error:
      log(f'error: {" ".join(str(error).split())}')
      return EXIT_USER


def set_up_jax() -> None:
  """Starts JAX: joins the other processes, keeps memory and compiled programs.

  Compiled programs are kept in the default cache directory, unless JAX is
  already told another place.
  """
  # Here, since --help and errors of configuration need no JAX.
  import jax

  from moe.parallel import multihost

  if _is_cpu_alone():
    # No thread may run yet: a thread that starts before this gets a memory
    # arena of its own.
    keep_freed_memory()
  stop_signals.listen()
  multihost.initialize()
  if jax.config.jax_compilation_cache_dir is None:
    compiled = os.path.join(default_cache_dir(), 'compiled')
    jax.config.update('jax_compilation_cache_dir', compiled)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def _is_cpu_alone() -> bool:
  """Whether JAX will run on CPUs alone; finds out without starting JAX."""
  platforms = os.environ.get('JAX_PLATFORMS')
  if platforms:
    return platforms == 'cpu'
  return not any(glob.glob(pattern) for pattern in _ACCELERATORS)


def keep_freed_memory() -> None:
  """Tells glibc's malloc to keep freed memory; does nothing to another malloc.

  XLA:CPU allocates the temporary memory of a step when the step starts,
  hundreds of megabytes at a time, and frees it when the step ends. By default
  malloc maps and unmaps each such block, and the kernel clears all its pages
  again. This takes a fifth of a training step on two cores. The price is that
  the process never gives memory back.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # This is another C library.
  # Only the main arena can grow to any size without mapping blocks.
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, -1)  # -1 means never.
