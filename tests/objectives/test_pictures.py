"""The trainer works with an objective on pictures instead of tokens."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from moe.checkpoint import listing
from moe.objectives.objective import Measure
from tests.objectives import pictures

MESHES = {1: pictures.ONE, 8: pictures.EIGHT}


def records(workdir, log='log.jsonl'):
  """Returns the records of a log without their times."""
  lines = (workdir / log).read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k != 'time'} for line in lines
  ]


@pytest.fixture(scope='module')
def programs():
  return {n: pictures.make(shape, n) for n, shape in MESHES.items()}


@pytest.fixture(scope='module')
def unbroken(programs, tmp_path_factory):
  """Number of devices -> (final state, directory) of a whole run."""
  runs = {}
  for n, program in programs.items():
    workdir = tmp_path_factory.mktemp(f'on_{n}')
    ts, code = pictures.train(program, workdir)
    assert code == 0
    runs[n] = jax.device_get(ts), workdir
  return runs


def fail():
  raise OSError('the machine is gone')


def stop():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('num_devices', MESHES)
@pytest.mark.parametrize('end', [fail, stop], ids=['killed', 'stopped'])
def test_an_interrupted_run_resumes_bit_for_bit(
  programs, unbroken, tmp_path, num_devices, end
):
  try:
    _, code = pictures.train(programs[num_devices], tmp_path, {5: end})
    assert code == 75
  except OSError:
    assert end is fail
  assert listing.steps(tmp_path / 'checkpoints')[-1] < pictures.STEPS
  ts, code = pictures.train(programs[num_devices], tmp_path)
  assert code == 0
  wanted, workdir = unbroken[num_devices]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(ts), wanted)
  for log in ('log.jsonl', 'eval.jsonl'):
    assert records(tmp_path, log) == records(workdir, log)


def test_eight_devices_train_and_evaluate_as_one_does(unbroken):
  for log, numbers in (
    ('log.jsonl', lambda r: [r['loss'], r['squared_error'], r['psnr']]),
    ('eval.jsonl', lambda r: [r['eval']['pictures'][n] for n in ('psnr',)]),
  ):
    one, eight = (
      np.array([numbers(r) for r in records(workdir, log)])
      for _, workdir in unbroken.values()
    )
    np.testing.assert_allclose(eight, one, rtol=1e-5)
  losses = [r['loss'] for r in records(unbroken[1][1])]
  assert losses[-1] < 0.5 * losses[0]


def test_progress_is_counted_in_pictures(unbroken):
  # The last picture of each batch is padding.
  found = [r['pictures'] for r in records(unbroken[8][1])]
  assert found == [15 * n for n in range(1, pictures.STEPS + 1)]


def test_the_score_of_the_objective_is_shown_with_its_unit(programs, tmp_path):
  stream = io.StringIO()
  pictures.train(programs[1], tmp_path, stream=stream)
  lines = stream.getvalue().splitlines()
  psnr = records(tmp_path, 'eval.jsonl')[-1]['eval']['pictures']['psnr']
  assert f'step 8: pictures {psnr:.4f} dB held out' in lines
  psnr = records(tmp_path)[-1]['psnr']
  assert f'  {psnr:.3f} dB  ' in lines[-1]
  assert 'pictures/s' in lines[-1]


def test_the_score_covers_all_held_out_pictures(programs, unbroken):
  ts, workdir = unbroken[1]
  params, total = ts.params, 0.0
  for seed in (100, 101):
    batch = pictures.make_batch(seed)
    made = np.tanh(batch['pictures'] @ params['down']) @ params['up']
    total += np.square(made - batch['pictures'])[:-1].sum()
  psnr = records(workdir, 'eval.jsonl')[-1]['eval']['pictures']['psnr']
  mean = total / (2 * 15 * pictures.Y * pictures.X * 3)
  assert psnr == pytest.approx(-10 * np.log10(mean), rel=1e-5)


class Steps:
  """An evaluation that needs no data. The score depends on the step."""

  score = Measure('distance', 'steps', None)

  def __init__(self, name='distance'):
    self._name = name

  def metrics(self, program, ts, is_stopped):
    del program, is_stopped
    return {self._name: abs(float(ts.step) - 6), 'other': 1.0}


@pytest.mark.parametrize('is_higher_better', [False, True])
def test_the_score_of_the_first_evaluation_ranks_checkpoints(
  programs, tmp_path, is_higher_better
):
  steps = Steps()
  steps.score = dataclasses.replace(
    steps.score, is_higher_better=is_higher_better
  )
  pictures.train(programs[1], tmp_path, evaluation=steps)
  # Steps 3, 6 and 8 are evaluated and saved. Their scores are 3, 0 and 2.
  ranked = [6, 8, 3]
  wanted = ranked[::-1] if is_higher_better else ranked
  assert listing.ranking(tmp_path / 'checkpoints') == wanted


def test_an_evaluation_that_lacks_its_own_score_is_refused(programs, tmp_path):
  with pytest.raises(ValueError, match="ranks checkpoints by 'distance'"):
    pictures.train(programs[1], tmp_path, evaluation=Steps('far'))


def test_a_term_without_a_weight_is_refused_while_building(monkeypatch):
  objective = dataclasses.replace(pictures.OBJECTIVE, weights=lambda batch: {})
  monkeypatch.setattr(pictures, 'OBJECTIVE', objective)
  with pytest.raises(ValueError, match=r"got none for \['squared_error'\]"):
    pictures.make(pictures.ONE, 1)


def test_fields_that_do_not_share_their_rows_are_refused():
  fields = pictures.OBJECTIVE.fields()
  weights = dataclasses.replace(fields['weights'], shape=(3,))
  objective = dataclasses.replace(
    pictures.OBJECTIVE, fields=lambda: {**fields, 'weights': weights}
  )
  with pytest.raises(ValueError, match="begin with the dim 'batch'"):
    objective.shapes()


@pytest.mark.nightly
@pytest.mark.parametrize('num_devices', MESHES)
def test_a_killed_process_resumes_bit_for_bit(tmp_path, num_devices):
  def run(name, last=-1):
    command = [sys.executable, '-m', 'tests.objectives.pictures']
    arguments = [tmp_path / name, str(num_devices), str(last)]
    environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '8'}
    return subprocess.run([*command, *arguments], env=environment).returncode

  assert run('killed', last=5) == -signal.SIGKILL
  assert run('killed') == run('whole') == 0
  for log in ('log.jsonl', 'eval.jsonl'):
    assert records(tmp_path / 'killed', log) == records(tmp_path / 'whole', log)
