import ctypes
import subprocess
import sys

import pytest

# Page faults of a block of 64 MiB that is written a second time.
PROGRAM = """
import resource, sys
import numpy as np

if sys.argv[1] == 'kept':
  runtime.keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = faults()
np.ones(2**23)
print(faults() - before)
"""


def faults(how):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, how],
    capture_output=True,
    text=True,
    check=True,
  )
  return int(done.stdout)


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'mallopt'), reason='no mallopt in this libc'
)
def test_memory_that_was_freed_is_used_again_without_page_faults():
  # Pages of 4 KiB, or 32 huge ones.
  assert faults('kept') < 16 < 32 <= faults('given back')
