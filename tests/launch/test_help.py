"""Every command answers --help at once."""

import os
import pathlib
import subprocess
import sys

import pytest

from launch import bench, calibrate, checkpoint, convert

ROOT = pathlib.Path(__file__).parents[2]
VERBS = sorted(
  path.stem
  for path in (ROOT / 'launch').glob('*.py')
  if '\ndef main(' in path.read_text(encoding='utf-8')
)
PROGRAM = """
import importlib, sys
heavy = {'numpy', 'jax', 'tensorflow', 'seqio', 'sentencepiece', 'rich'}
for verb in sys.argv[1:]:
  try:
    importlib.import_module(f'launch.{verb}').main(['--help'])
  except SystemExit as end:
    assert not end.code, verb
  assert not heavy & set(sys.modules), (verb, heavy & set(sys.modules))
"""


def test_help_imports_nothing_heavy():
  assert 'data' in VERBS
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, *VERBS],
    cwd=ROOT,
    # A terminal may be able to print ASCII only.
    env=os.environ | {'PYTHONIOENCODING': 'ascii'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  for verb in VERBS:
    assert f'usage: python -m launch.{verb}' in done.stdout


@pytest.mark.parametrize(
  ('verb', 'words'),
  [
    (bench, ['step', '--round=2']),
    (calibrate, ['published', '--js']),
    (checkpoint, ['verify', 'runs/x', '--untrust']),
    (convert, ['to-hf', 'runs/x', 'out', '--fuse']),
  ],
)
def test_a_flag_must_be_written_out(verb, words, capsys):
  with pytest.raises(SystemExit) as end:
    verb.parse(words)
  assert end.value.code == 2
  assert 'unrecognized arguments' in capsys.readouterr().err
