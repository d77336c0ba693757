"""Memory that a CPU's steps use again and again is kept, not given back."""

import ctypes

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Tells glibc's malloc to keep what is freed; elsewhere does nothing.

  XLA:CPU asks for the temporary memory of a step at its start, hundreds of
  megabytes at a time, and frees it at its end. By default malloc maps and
  unmaps each such block, and the kernel clears every page of it again: a fifth
  of a training step on two cores. What a process once used it then holds on to.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # another C library
  # Only one arena can grow over any size without mapping, the main one.
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, -1)  # never
