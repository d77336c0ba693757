"""Tests launch.checkpoint, which lists, verifies, shows and rewinds steps."""

import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from launch import checkpoint as command
from moe.checkpoint import save


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """The directory of a run with steps 5 and 10. Step 5 has the better score."""
  run = tmp_path_factory.mktemp('run')
  saver = save.Checkpointer(run / 'checkpoints', best_metric='bits_per_char')
  meta = {'manifest_hash': 'abc', 'config': 'A = 1\nB = 2\n'}
  for step, score in ((5, 6.5), (10, 7.0)):
    params = {'w': jnp.full((4,), float(step))}
    saver.save(step, {'params': params}, meta, {'bits_per_char': score})
  saver.close()
  return run


@pytest.fixture
def copy(saved, tmp_path):
  """A copy of `saved` that the test may change."""
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def test_list_shows_sizes_metrics_and_the_best(saved, capsys):
  assert command.main(['list', str(saved)]) == 0
  head, first, second = capsys.readouterr().out.splitlines()
  assert head.split() == ['step', 'size', 'metrics']
  assert first.split() == ['5', '0.0', 'MiB', 'bits_per_char=6.5', '(best)']
  assert second.split() == ['10', '0.0', 'MiB', 'bits_per_char=7']


def test_verify_finds_sound_steps_sound(saved, capsys):
  assert command.main(['verify', str(saved)]) == 0
  assert capsys.readouterr().out == 'step 5: sound\nstep 10: sound\n'


def test_verify_names_the_damaged_file_and_its_step(copy, capsys):
  path = copy / 'checkpoints' / '10' / 'state' / 'manifest.ocdbt'
  path.write_bytes(path.read_bytes()[:-1])
  assert command.main(['verify', str(copy)]) == 1
  seen = capsys.readouterr()
  assert seen.out == 'step 5: sound\n'
  assert 'step 10: state/manifest.ocdbt has ' in seen.err


def test_verify_can_check_one_step_alone(copy):
  (copy / 'checkpoints' / '10' / 'integrity.json').unlink()
  assert command.main(['verify', str(copy), '--step=5']) == 0
  assert command.main(['verify', str(copy / 'checkpoints' / '10')]) == 1


def test_show_prints_the_newest_step_and_its_unchanged_config(saved, capsys):
  assert command.main(['show', str(saved)]) == 0
  seen = capsys.readouterr().out
  assert '"step": 10' in seen
  assert '"manifest_hash": "abc"' in seen
  assert seen.endswith('config:\nA = 1\nB = 2\n')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['show', 'RUN', '--step=7'], 'must be one of [5, 10]'),
    (['list', 'RUN/checkpoints/5/meta'], 'got one without any'),
  ],
)
def test_mistakes_are_one_sentence(saved, capsys, arguments, message):
  argv = [text.replace('RUN', str(saved)) for text in arguments]
  assert command.main(argv) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('module', ['launch.checkpoint', 'launch.report'])
def test_help_needs_no_jax(module):
  program = (
    f'import sys, {module} as m\n'
    'try: m.main(["--help"])\n'
    'except SystemExit: sys.exit("jax" in sys.modules)\n'
  )
  start = time.perf_counter()
  subprocess.run([sys.executable, '-c', program], check=True)
  assert time.perf_counter() - start < 5


def test_rewind_makes_an_earlier_step_the_newest(copy, capsys):
  command_line = ['rewind', str(copy), '--to=5', '--skip=7:9']
  assert command.main(command_line) == 0
  assert 'batches 6 to 7 are left out' in capsys.readouterr().err
  assert command.main(['list', str(copy)]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 2
