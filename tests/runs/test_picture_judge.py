"""The judge of pictures learns from pictures that no model has seen."""

import json

import numpy as np

from moe.data.store import write_store
from moe.evaluate import judge as judge_lib
from moe.runs import picture_judge
from moe.runs.held_out_pictures import held_out


def store_of(directory, value, names, attribute='name'):
  """Writes a store of grey pictures, one for each of `names`."""
  records = [
    {
      'pixels': np.full((8, 8, 3), value, np.uint8),
      'facts': np.frombuffer(
        json.dumps({'caption': 'a', attribute: name}).encode(), np.uint8
      ),
    }
    for name in names
  ]
  write_store(directory, records, dict)
  return str(directory)


def test_a_judge_has_its_own_pictures_and_enough_steps(tmp_path, monkeypatch):
  names = [str(n % 10) for n in range(20)]
  by_split = {
    'train': store_of(tmp_path / 'train', 1, names),
    'judge': store_of(tmp_path / 'judge', 2, names),
  }
  asked = []
  monkeypatch.setattr(judge_lib, 'train', lambda *args: asked.append(args))
  training = held_out('a', picture_judge.Store(by_split['train']), 8, 20)
  picture_judge.judge_of(by_split, training, 4, '')
  ((pixels, facts, epochs),) = asked
  assert (pixels == 2).all() and len(facts) == 20
  # The 10 names need 150 steps. The 20 pictures are one batch, so an epoch is
  # one step.
  assert epochs == 150


def test_pictures_of_files_have_no_judge(tmp_path):
  names = ['a.png', 'a.png', 'b.png', 'b.png']
  by_split = {'train': store_of(tmp_path / 'train', 1, names, 'file')}
  training = held_out('a', picture_judge.Store(by_split['train']), 8, 4)
  assert picture_judge.judge_of(by_split, training, 4, '') is None
