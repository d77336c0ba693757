"""The judge learns attributes of pictures and is compared with the truth."""

import numpy as np
import pytest

from moe.evaluate import judge

pytestmark = pytest.mark.slow

FACTS = [
  {'kind': 'one', 'label': 0, 'name': 'boot', 'tags': ['a']},
  {'kind': 'two', 'label': 1, 'name': 'coat', 'place': 'left'},
  {'kind': 'one', 'label': 1, 'name': 'coat', 'place': 'right'},
]


def test_attributes_have_several_values_and_are_named_once():
  # The name divides the pictures like the label, so it is left out. A list,
  # such as the tags, is not a class.
  assert judge.attributes_of(FACTS) == {
    'kind': ['one', 'two'],
    'label': [0, 1],
    'place': ['left', 'right'],
  }


def test_the_name_of_a_file_is_no_attribute():
  facts = [{'file': name} for name in ('a.png', 'a.png', 'b.png')]
  assert judge.attributes_of(facts) == {}


@pytest.mark.parametrize('size', [8, 12])
def test_few_pictures_are_one_batch(size):
  shape = size, size, 3
  pictures = np.stack([np.full(shape, v, np.uint8) for v in (0, 255)])
  facts = [{'name': 'dark'}, {'name': 'light'}]
  made = judge.train(pictures, facts, epochs=30)
  assert judge.right(made, judge.judge(made, pictures)[0], facts)['all'].all()


def test_an_attribute_that_a_picture_lacks_does_not_count():
  one = judge.Judge({}, {'kind': ['one', 'two'], 'place': ['left', 'right']})
  answers = {'kind': np.array([0, 1, 1]), 'place': np.array([0, 1, 1])}
  right = judge.right(one, answers, FACTS)
  np.testing.assert_array_equal(right['kind'], [1, 1, 0])
  np.testing.assert_array_equal(right['place'], [np.nan, 0, 1])
  np.testing.assert_array_equal(right['all'], [1, 0, 0])


def test_a_judge_learns_what_is_plain_to_see():
  rng = np.random.default_rng(1)
  dark = rng.integers(0, 60, (128, 8, 8, 3), np.uint8)
  light = rng.integers(190, 256, (128, 8, 8, 3), np.uint8)
  pictures = np.concatenate([dark, light])
  facts = [{'name': 'dark'}] * 128 + [{'name': 'light'}] * 128
  made = judge.train(pictures, facts, epochs=4)
  answers, features = judge.judge(made, pictures)
  assert judge.right(made, answers, facts)['all'].mean() > 0.95
  assert features.shape[0] == 256
