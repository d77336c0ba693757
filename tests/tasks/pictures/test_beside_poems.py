import runpy

import pytest

MODULE = 'tasks.pictures.beside_poems'


def test_a_quarter_of_the_rows_are_poems(declare):
  for name in ('draw_a_8', 'describe_a_8', 'draw_b_8'):
    declare.add_text_task(name, None, lambda record: record)
  runpy.run_module(MODULE)
  assert declare.RATES['pictures_poems'] == {
    'draw_a_8': 0.25,
    'describe_a_8': 0.25,
    'draw_b_8': 0.25,
    'poems_shi': 0.25,
  }


def test_without_pictures_the_order_of_modules_is_named(declare):
  with pytest.raises(ValueError, match='before tasks.pictures.beside_poems'):
    runpy.run_module(MODULE)
