"""Checkpoints work on gs://, here with a storage server on this machine."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.nightly
def test_checkpoints_live_in_a_bucket():
  pytest.importorskip(
    'gcp_storage_emulator', reason='the extra `interop` is not installed'
  )
  done = subprocess.run(
    [sys.executable, '-m', 'tests.checkpoint.gcs_run'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['kept'] == [2, 3]
  assert 'Read-only file system; step 3 is intact' in found['error']
  assert found['after_failure'] == [2, 3]
  assert found['left'] == ['2', '3']
  assert (found['resumed'], found['head']) == (3, [3.5, 3.5, 3.5])
  assert found['sound'] == []
  assert 'meta/metadata has' in found['damage'][0]
  assert found['fallback'] == 2
  assert 'gs://missing/run' in found['missing']
