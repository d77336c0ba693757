"""A run and its export have equal likelihoods in lm_eval.

The test needs the extra `interop`.
"""

import gzip
import json
import lzma

import pytest

from launch import convert
from moe.evaluate import benchmarks
from tests.evaluate.test_benchmarks import ROWS

pytestmark = pytest.mark.nightly
REASON = 'the extra `interop` is not installed'


@pytest.fixture
def data(tmp_path):
  """A data folder with two rows of each benchmark."""
  for one in benchmarks.BENCHMARKS:
    row = ROWS[one.name]
    path = tmp_path / one.file
    path.parent.mkdir(exist_ok=True)
    openers = {'.xz': lzma.open, '.gz': gzip.open}
    opened = openers.get(path.suffix, open)(path, 'wt', encoding='utf-8')
    with opened as f:
      # The second row has another id. In XCOPA it also has another answer.
      for changed in (
        {},
        {'id': 'z'} | ({'label': 1} if 'premise' in row else {}),
      ):
        f.write(json.dumps(row | changed) + '\n')
  return tmp_path


def test_accuracies_are_equal_and_likelihoods_within_the_bar(
  run_directory, data, tmp_path, monkeypatch
):
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
  for name in ('HF_DATASETS_OFFLINE', 'HF_HUB_OFFLINE'):
    monkeypatch.setenv(name, '1')
  pytest.importorskip('lm_eval', reason=REASON)
  pytest.importorskip('accelerate', reason=REASON)
  from tests.interop import compare_likelihoods

  exported = str(tmp_path / 'exported')
  assert convert.main(['to-hf', str(run_directory), exported]) == 0
  rows = compare_likelihoods.compare(str(run_directory), exported, data)
  assert [row.task for row in rows] == list(compare_likelihoods.YAML)
  assert [row.items for row in rows] == [2, 2, 2, 2]
  assert all(row.is_equal for row in rows), rows


def test_a_likelihood_above_the_bar_is_asked_for_again():
  pytest.importorskip('lm_eval', reason=REASON)
  from tests.interop.compare_likelihoods import gap

  never = lambda number: pytest.fail('asked')
  assert gap((-2.0, -2.0005), never) == (pytest.approx(0.0005), False)
  # Program 0 gives -2.0 in a large batch, but -2.1 in a batch of one. Program 1
  # gives -2.1 in both.
  assert gap((-2.0, -2.1), lambda number: -2.1) == (0, True)
  # Each program stays with its value.
  assert gap((-2.0, -2.1), lambda n: (-2.0, -2.1)[n]) == (
    pytest.approx(0.1),
    False,
  )
