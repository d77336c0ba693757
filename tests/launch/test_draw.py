"""launch.draw and launch.describe refuse mistakes in their flags."""

import pytest

from launch import describe, draw

CHECKPOINT = '--checkpoint=runs/pictures'


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--out=red.jpg'], '--out=red.jpg must end in .png'),
    (['--out=nowhere/red.png'], 'a directory that exists'),
    (['--out=red.png', '--num=0'], '--num=0 must be at least 1'),
    (['--out=red.png', '--seed=-1'], '--seed=-1 must be'),
    (['--out=red.png', '--guidance=nan'], 'guidance=nan must be from 0'),
    (['--out=red.png', '--rerank=0'], 'rerank=0 must be at least 1'),
  ],
)
def test_flags_of_drawing_are_checked_first(flags, message, capsys):
  assert draw.main([CHECKPOINT, '--prompt=紅', *flags]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--labels=靴子'], 'at least two different labels'),
    (['--num=0'], '--num=0 must be at least 1'),
    (['--samples=0'], '--samples=0 must be at least 1'),
  ],
)
def test_flags_of_describing_are_checked_first(flags, message, capsys):
  assert describe.main([CHECKPOINT, 'boot.png', *flags]) == 2
  assert message in capsys.readouterr().err
