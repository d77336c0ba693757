"""Drawing with guidance is timed against drawing without it."""

import types

import numpy as np
import pytest

from moe.runs import drawing_speed


class Painter:
  """A model that notes what it draws; guidance takes it no longer."""

  def __init__(self):
    self.drawn, self.decoded = [], 0
    self.tokenizer = types.SimpleNamespace(decode=self._decode)

  def draw_codes(self, sentences, options):
    self.drawn.append((len(sentences), options.guidance))
    return np.zeros((len(sentences), 4), np.int32)

  def _decode(self, codes):
    self.decoded += 1
    return codes


def test_both_programs_draw_all_pictures_at_a_time_into_pixels():
  painter = Painter()
  report = drawing_speed.compare(painter, '圓形', 96, 2.0, rounds=3)
  # Each program draws twice before its three samples.
  wanted = [(96, 1.0), (96, 2.0)]
  assert sorted(painter.drawn) == sorted(wanted * 5)
  assert painter.decoded == 10
  names = [run['name'] for run in report['runs']]
  assert names == ['without guidance', 'with guidance 2']
  # Times are of one picture.
  assert 0 < report['seconds'] < 1e-2
  assert report['unit'] == 'picture'


@pytest.mark.parametrize(
  ('num', 'guidance', 'message'),
  [(0, 2.0, '--num=0 must be'), (9, 1.0, '--guidance must not be 1')],
)
def test_numbers_of_the_comparison_are_checked(num, guidance, message):
  with pytest.raises(ValueError, match=message):
    drawing_speed.compare(Painter(), '圓形', num, guidance, rounds=1)
