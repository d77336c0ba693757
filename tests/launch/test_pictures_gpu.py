"""Each command of launch/pictures_gpu.sh describes a run, or is a verb."""

import os
import pathlib
import subprocess

import pytest

from launch import images, ladder, train
from launch.configs import configuration
from moe.runs import arms

ROOT = pathlib.Path(images.__file__).parents[1]
# A stand-in for Python. It notes its arguments, one a line.
NOTE = '#!/bin/sh\nprintf "%s\\n" "$@" "" >> "$NOTED"\n'
TRAIN, IMAGES, LADDER = 'launch.train', 'launch.images', 'launch.ladder'
TOKENIZER = [TRAIN, f'{IMAGES} tokenizer-report', f'{IMAGES} encode']
MODEL = [TRAIN, f'{IMAGES} score']
PARTS = {
  'pictures': TOKENIZER + MODEL,
  'patches': [f'{IMAGES} encode', *MODEL],
  'twin': [LADDER],
  'hanzi': TOKENIZER + MODEL,
  'emoji': TOKENIZER + MODEL,
}


def run(part, tmp_path):
  """(exit code, the arguments of each command) of a part."""
  python, noted = tmp_path / 'python', tmp_path / 'noted'
  python.write_text(NOTE)
  python.chmod(0o755)
  script = [ROOT / 'launch/pictures_gpu.sh', part, str(tmp_path), '70', '90']
  code = subprocess.run(
    ['bash', *script],
    env={**os.environ, 'PYTHON': str(python), 'NOTED': str(noted)},
    check=False,
  ).returncode
  text = noted.read_text() if noted.is_file() else ''
  return code, [one.split('\n') for one in text.split('\n\n') if one]


def check(module, words):
  """Reads the configuration, or the flags, of a command."""
  if module == IMAGES:
    images.parse(words)
  elif module == TRAIN:
    args, overrides = train.parse(words)
    run = configuration.read(args.gin_file, overrides).run
    assert run.settings.train_steps in (70, 90)
    assert run.data.batch_size in (64, 128)
  else:
    args, overrides = ladder.parse(words)
    read = lambda own: configuration.load(args.gin_file, [*overrides, *own])
    wanted = arms.arms(args.experts, args.arm, args.seeds)
    assert {*arms.load(wanted, read)} == {'dense', 'grouped'}


@pytest.mark.parametrize('part', PARTS)
def test_a_part_runs_commands_that_exist(part, tmp_path):
  code, commands = run(part, tmp_path)
  assert code == 0
  named = []
  for flag, module, *words in commands:
    assert flag == '-m'
    named.append(f'{module} {words[0]}' if module == IMAGES else module)
    check(module, words)
  assert named == PARTS[part]


def test_an_unknown_part_is_refused(tmp_path):
  assert run('photos', tmp_path) == (2, [])
