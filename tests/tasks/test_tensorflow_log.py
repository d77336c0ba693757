"""TensorFlow's messages are dropped, and other output is not."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from tasks import tensorflow_log
tensorflow_log.set_up()
with tensorflow_log.dropped():
  os.write(2, b'native\\n')
  print('python', file=sys.stderr)
os.write(2, b'after\\n')
"""


@pytest.mark.parametrize(
  ('level', 'written'),
  [
    ({}, 'python after'),
    ({'TF_CPP_MIN_LOG_LEVEL': '1'}, 'python after'),  # JAX sets 1.
    ({'TF_CPP_MIN_LOG_LEVEL': '0'}, 'native python after'),
  ],
)
def test_only_messages_of_libraries_are_dropped_unless_asked_for(
  level, written
):
  environment = {
    name: value
    for name, value in os.environ.items()
    if name != 'TF_CPP_MIN_LOG_LEVEL'
  }
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=environment | level,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr.split() == written.split()
