"""A run whose work directory is in a bucket."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.nightly
def test_a_run_in_a_bucket_resumes_on_another_machine(tmp_path):
  pytest.importorskip(
    'gcp_storage_emulator', reason='the extra `interop` is not installed'
  )
  pytest.importorskip('seqio')
  done = subprocess.run(
    [sys.executable, '-m', 'tests.launch.gcs_train', str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1]) == {
    'whole': 0,
    'stopped': 75,
    'resumed': 0,
    'steps': ['12', '8'],
    'verified': 0,
    'is_equal': True,
    'num_steps': 12,
    'missing': 2,
  }, done.stderr
  assert 'gs://missing/run must be in a bucket' in done.stderr
