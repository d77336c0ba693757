"""Tests launch.doctor on several hosts."""

import time

import pytest

from tests.parallel.cluster import started

FLAGS = ['-m', 'launch.doctor', '--gin_file=gin_configs/runs/quickstart.gin']


def ended(processes):
  """Waits for processes; returns (lines of each process, their exit codes)."""
  texts = [p.communicate(timeout=100)[0] for p in processes]
  lines = [text.splitlines() for text in texts]
  return lines, [p.returncode for p in processes]


@pytest.mark.slow
def test_a_missing_host_is_named_first(tmp_path):
  begin = time.monotonic()
  flags = [*FLAGS, '--hosts', '--patience=3', f'--workdir={tmp_path}']
  lines, codes = ended(started(flags, 3, 2, {0, 2}))
  assert codes == [2, 2]
  for text in lines:
    assert text[0].startswith('BAD    hosts')
    assert 'process 1 of 3 not started after 3 s' in text[0]
  assert time.monotonic() - begin < 60


@pytest.mark.nightly
def test_hosts_whose_devices_do_not_fit_the_mesh_are_told(tmp_path):
  flags = [*FLAGS, '--hosts', '--gin.MESH_EXPERT=3', f'--workdir={tmp_path}']
  lines, codes = ended(started(flags, 2, 2))
  assert codes == [2, 2]
  mesh = 'the mesh needs a multiple of 3 devices, got 4'
  assert any(mesh in line for line in lines[0] if line.startswith('BAD'))
  assert any('all 2 have come' in line for line in lines[0])
