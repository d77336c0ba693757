"""A run meets twenty faults, and ends equal to an unbroken run."""

import pytest

from tests.launch import soak


@pytest.mark.nightly
def test_a_run_with_twenty_faults_equals_an_unbroken_one(tmp_path):
  pytest.importorskip('seqio')
  assert len(soak.FAULTS) == 20
  summary = soak.soak(tmp_path, steps=150, first=0.5, last=4.0, sleep=0.3)
  assert summary['faults'] == 20
  assert summary['is_equal']
  # Only the pause and the second run let the attempt go on.
  assert summary['attempts'] == 20 - 2 + 1
