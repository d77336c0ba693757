"""Code that all commands share: start of JAX, the log, and errors."""

import argparse
import atexit
import contextlib
import ctypes
import gc
import glob
import io
import logging
import os
import select
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from moe import outages, stop_signals
from moe.data.cache_dir import default_cache_dir
from moe.parallel import farewell, processes, roll_call

# The exit code for an error that the user can fix.
EXIT_USER = farewell.EXIT_MISTAKE
# Python gives this exit code to a command that an exception has ended.
EXIT_CRASHED = 1
# How long to wait for the news that another process has ended.
_NEWS_SECONDS = 3.0
# Shells give this exit code to a command that ended because its pipe closed.
EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE
# Device files of TPUs and of NVIDIA GPUs.
_ACCELERATORS = ('/dev/accel*', '/dev/vfio/*', '/dev/nvidia[0-9]*')
# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def log(message: str) -> None:
  """Prints one line for people; standard output is for the result."""
  print(message, file=sys.stderr, flush=True)


def parser(
  verb: str, description: str, **options: Any
) -> argparse.ArgumentParser:
  """A parser for the flags of a command. It prints the description unchanged.

  Args:
    verb: name of the module in launch.
    description: what --help prints before the flags.
    **options: of `argparse.ArgumentParser`, such as `usage`.
  """
  return argparse.ArgumentParser(
    prog=f'python -m launch.{verb}',
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    **options,
  )


def command_line(verb: str, argv: Sequence[str] | None) -> str:
  """The command line of launch.`verb` with `argv`, by default sys.argv[1:]."""
  words = sys.argv[1:] if argv is None else argv
  return shlex.join(['python', '-m', f'launch.{verb}', *words])


class _Log(logging.Handler):
  """A log handler that prints each record with `log`."""

  def emit(self, record: logging.LogRecord) -> None:
    log(self.format(record))


@contextlib.contextmanager
def show_log() -> Iterator[None]:
  """Prints log messages of `moe` and `tasks`, but not of other libraries."""
  loggers = [logging.getLogger(name) for name in ('moe', 'tasks')]
  before = [(logger.level, logger.propagate) for logger in loggers]
  handler = _Log()
  for logger in loggers:
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # A library may give the root logger a handler. Without this line, that
    # handler would print each message a second time.
    logger.propagate = False
  try:
    yield
  finally:
    for logger, (level, propagate) in zip(loggers, before, strict=True):
      logger.removeHandler(handler)
      logger.setLevel(level)
      logger.propagate = propagate


class _ForPeople(io.FileIO):
  """Standard error that drops output if it can no longer be written.

  A run continues when its terminal or the reader of its pipe is gone, because
  its results are in files.
  """

  def write(self, data: bytes) -> int:
    """Writes the data if possible, and always reports it as written."""
    with contextlib.suppress(OSError):
      return super().write(data)
    return len(data)


@contextlib.contextmanager
def _writable_streams() -> Iterator[None]:
  r"""Makes standard output and standard error accept everything printed.

  A character that the terminal's encoding lacks is written as its escape, such
  as \u6625. Output to a stream that the shell has closed is dropped.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # `open` returns the lowest free number, which is that of the closed
      # stream. If the number stayed free, the next opened file would get it,
      # and libraries would print into that file.
      os.open(os.devnull, os.O_RDWR)
  if sys.stdout is None:
    sys.stdout = open(1, 'w', closefd=False)
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  if sys.stderr is not sys.__stderr__:  # A caller has replaced it: keep theirs.
    yield
    return
  stream = io.TextIOWrapper(
    io.BufferedWriter(_ForPeople(2, 'w', closefd=False)),
    encoding=getattr(sys.stderr, 'encoding', None),
    errors='backslashreplace',
    line_buffering=True,
  )
  with contextlib.redirect_stderr(stream):
    yield


def _is_read() -> bool:
  """Whether somebody can still read standard output."""
  poll = select.poll()
  poll.register(sys.stdout, 0)
  return not any(event & select.POLLERR for _, event in poll.poll(0))


def run(verb: Callable[[], int]) -> int:
  """Runs a command; turns errors and signals into a sentence and an exit code.

  The exit code is 2 for an error that the user can fix, 74 if a disk or the
  network failed, and 75 after Ctrl-C, SIGTERM or SIGHUP. After such a signal a
  training run saves a checkpoint before it ends. A second Ctrl-C ends the
  process at once. If nobody reads standard output any more, as after
  `| head -1`, the command ends without a message.

  Args:
    verb: function that does everything and returns the exit code. The function
      should also parse the flags, so that a failure to print --help is handled.
  """
  # Where TensorFlow is installed, Etils would use it for gs://. But a process
  # with a model never imports TensorFlow.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  with _writable_streams(), show_log():
    try:
      try:
        return _code(verb)
      finally:
        sys.stdout.flush()
    except OSError as error:
      is_read = _is_read()
      # When Python ends, it tries again to write what is left in its buffer.
      # So standard output becomes the null device.
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, sys.stdout.fileno())
      os.close(null)
      if not is_read:
        return EXIT_CLOSED_PIPE
      log(f'error: standard output must take what is printed, got {error}.')
      return EXIT_USER


def _with_others(verb: Callable[[], int]) -> int:
  """Runs a command; if it succeeds, waits until other processes are done."""
  code = verb()
  if code == 0:
    processes.leave(0)
  return code


def _code(verb: Callable[[], int]) -> int:
  """Runs a command; returns its exit code and tells it to other processes.

  Raises:
    BrokenPipeError: if nobody reads standard output any more.
    SystemExit: if the command raises it.
    Exception: any error of the command that is no ValueError and no OSError.
  """
  text = ''
  try:
    with stop_signals.raising():
      code = _with_others(verb)
  except stop_signals.Stopped as stop:
    text = f'{stop}: ended; run it again to go on.'
    code = stop_signals.EXIT_STOPPED
  except SystemExit as error:  # For example, token stores could not be made.
    told = error.code or 0  # A text here makes Python end with code 1.
    processes.leave(told if type(told) is int else EXIT_CRASHED)
    raise
  except roll_call.Missing as error:
    text, code = f'error: {error}', farewell.EXIT_LOST
  except (ValueError, OSError) as error:
    if isinstance(error, BrokenPipeError) and not _is_read():
      raise
    if processes.are_joined() and 'Gloo' in str(error):
      # A failed collective usually means that another process has ended.
      farewell.end_by_news(_NEWS_SECONDS)
    text = f'error: {" ".join(str(error).split())}'
    is_outage = outages.is_outage(error)
    code = outages.EXIT_OUTAGE if is_outage else EXIT_USER
  except Exception as error:
    if processes.are_joined():
      traceback.print_exc()
      farewell.end_by_news(_NEWS_SECONDS)
      processes.leave(EXIT_CRASHED, f'{type(error).__name__}: {error}')
    raise
  if text:
    log(text)
  processes.leave(code, text.removeprefix('error: '))
  return code


def set_up_jax() -> None:
  """Starts JAX: joins other processes, and caches compiled programs.

  Programs are stored in the default cache directory, unless JAX is already
  configured with another one. If JAX uses only CPUs, freed memory is kept.
  """
  import jax  # Here, since --help needs no JAX.

  if _is_cpu_alone():
    # No other thread may run yet, since each would get its own memory arena.
    keep_freed_memory()
  stop_signals.listen()
  processes.initialize()
  if not processes.is_first():
    sys.stdout = io.StringIO()  # Only process 0 prints results.
  # Else the search for garbage at exit takes more than a second.
  atexit.register(gc.freeze)
  if jax.config.jax_compilation_cache_dir is None:
    compiled = os.path.join(default_cache_dir(), 'compiled')
    jax.config.update('jax_compilation_cache_dir', compiled)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def _is_cpu_alone() -> bool:
  """Whether JAX will use only CPUs; JAX is not started to find this out."""
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
    return  # The C library is not glibc.
  # All threads use the main arena, the only one that grows without mmap.
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, -1)  # -1: never return freed memory to the kernel.
