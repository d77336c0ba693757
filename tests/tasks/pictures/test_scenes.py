import itertools

import numpy as np
import pytest

from tasks.pictures import scenes, shapes
from tasks.pictures.scenes import Scene, Thing

THINGS = [
  Thing(*parts)
  for parts in itertools.product(scenes.COLOURS, scenes.FORMS, scenes.SIZES)
]


def test_held_out_triples_have_only_pairs_that_occur_in_training():
  by_split = {
    split: [thing for thing in THINGS if thing.held_out_split == split]
    for split in ('', 'unseen', 'unseen_pairs')
  }
  # One of 6 triples is held out of the 45 pairs (colour, form) that are not.
  assert len(by_split['unseen']) == pytest.approx(45 * 3 / 6, abs=1)
  pairs = lambda t: {(t.colour, t.form), (t.form, t.size), (t.size, t.colour)}
  in_training = set.union(*map(pairs, by_split['']))
  assert all(pairs(thing) <= in_training for thing in by_split['unseen'])
  # Of the pairs of the last split, only those of colour and form are new.
  new = set.union(*map(pairs, by_split['unseen_pairs'])) - in_training
  assert len(new) == 3 and len(by_split['unseen_pairs']) == 9
  assert new == {(t.colour, t.form) for t in by_split['unseen_pairs']}


@pytest.mark.parametrize('number', range(30))
def test_every_sentence_is_read_back_as_its_scene(number):
  scene = shapes.random_scene(np.random.default_rng(number))
  for template in range(12):
    text = scenes.caption(scene, template)
    assert scenes.read(text) == scene, text


def test_a_sentence_is_checked_attribute_by_attribute():
  scene = Scene((Thing('紅', '圓形', '大'),), place='左上角')
  right = scenes.agreement('右上角有一個大紅色圓形', scene)
  assert right == {
    'colour_0': True,
    'form_0': True,
    'size_0': True,
    'place': False,
    'all': False,
  }
  assert scenes.agreement('一個大紅色圓形在左上角', scene)['all']


@pytest.mark.parametrize(
  'text',
  ['', '左上角有一個大紅色圓', '三個大紅色圓形', '左上角有一個大粉色圓形'],
)
def test_a_sentence_of_another_kind_is_wrong_in_everything(text):
  scene = Scene((Thing('紅', '圓形', '大'),), place='左上角')
  assert not any(scenes.agreement(text, scene).values())


def test_two_objects_may_be_named_in_either_order():
  things = Thing('紅', '圓形', '大'), Thing('藍', '方形', '小')
  scene = Scene(things, relation='右邊')
  assert scenes.agreement('大紅色圓形在小藍色方形的右邊', scene)['all']
  assert scenes.agreement('小藍色方形在大紅色圓形的左邊', scene)['all']
  # The blue square is the left one, so its attributes have the number 0.
  right = scenes.agreement('小綠色方形在大紅色圓形的左邊', scene)
  assert not right.pop('all')
  assert [name for name, is_right in right.items() if not is_right] == [
    'colour_0'
  ]
  assert not scenes.agreement('小藍色方形在大紅色圓形的右邊', scene)['all']
