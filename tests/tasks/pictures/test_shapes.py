import numpy as np
import pytest

from tasks.pictures import scenes, shapes
from tasks.pictures.scenes import Scene, Thing


def rng():
  return np.random.default_rng(0)


def test_a_picture_depends_on_split_and_number_alone():
  first, again = (
    list(shapes.Shapes(40, 16).records('validation')) for _ in range(2)
  )
  assert len(first) == 2
  for a, b in zip(first, again, strict=True):
    assert np.array_equal(a['picture'], b['picture'])
    assert a['caption'] == b['caption'] and a['facts'] == b['facts']


@pytest.mark.parametrize('split', shapes.Shapes.splits)
def test_held_out_combinations_are_in_their_own_split_alone(split):
  count = 300 if split == 'train' else 2000
  held_out = split if split.startswith('unseen') else ''
  for record in shapes.Shapes(count, 8).records(split):
    scene = scenes.of_facts(record['facts'])
    found = sorted(thing.held_out_split for thing in scene.things)
    assert found[-1] == held_out and not any(found[:-1])


@pytest.mark.parametrize('form', scenes.FORMS)
def test_an_object_lies_in_its_place_in_its_colour(form):
  scene = Scene((Thing('藍', form, '大'),), place='右下角')
  picture = shapes.render(scene, 32, rng()).astype(int)
  is_drawn = np.abs(picture - 255).max(axis=-1) > 100
  rows, columns = np.nonzero(is_drawn)
  assert 22 < rows.mean() < 29 and 22 < columns.mean() < 29
  assert 30 < is_drawn.sum() < 150
  colour = np.median(picture[is_drawn], axis=0)
  np.testing.assert_allclose(colour, scenes.COLOURS['藍'], atol=25)


def test_the_first_object_lies_where_the_relation_says():
  things = (Thing('紅', '圓形', '大'), Thing('藍', '方形', '大'))
  columns = {}
  for relation in ('左邊', '右邊'):
    picture = shapes.render(Scene(things, relation=relation), 32, rng())
    picture = picture.astype(int)
    is_red = picture[..., 0] - picture[..., 2] > 100
    columns[relation] = np.nonzero(is_red)[1].mean()
  assert columns['左邊'] < 12 and columns['右邊'] > 20


def test_the_number_of_objects_is_drawn():
  thing, areas = Thing('黑', '方形', '小'), {}
  for number in (2, 4):
    picture = shapes.render(Scene((thing,), number=number), 32, rng())
    areas[number] = (255 - picture[..., 0].astype(int)).sum()
  assert areas[4] / areas[2] == pytest.approx(2, rel=0.1)
