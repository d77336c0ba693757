"""The pictures for the report of a run."""

import types

import numpy as np
import pytest

from moe.runs import gallery, gallery_file
from moe.runs.gallery_file import Gallery

PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
NAMES = ['靴子', '靴子', '大衣']


class Painter:
  """Draws pictures whose pixels are the step, and calls all of them boots."""

  def __init__(self, step):
    self.trained = types.SimpleNamespace(step=step)
    self.tokenizer = types.SimpleNamespace(decode=lambda codes: codes)

  def draw(self, sentences, drawing):
    del drawing
    pixels = PIXELS[0] + self.trained.step
    return [types.SimpleNamespace(pixels=pixels)] * len(sentences)

  def see_codes(self, codes):
    return codes

  def write(self, seen):
    return ['靴子'] * len(seen)


@pytest.fixture
def examples(monkeypatch):
  def gains(model, seen, labels, templates, alpha):
    del model, templates, alpha
    return np.array([[float(name == '靴子') for name in labels]] * len(seen))

  monkeypatch.setattr(gallery.recognition, 'gains', gains)
  codes = np.zeros((3, 4), np.int32)
  return gallery.Examples(codes, None, ['一雙靴子'] * 3, NAMES, ['一雙靴子'])


def test_a_gallery_is_read_as_it_was_written(tmp_path):
  one = Gallery(['紅'], {5: PIXELS, 10: PIXELS + 1}, made=PIXELS, labels=['a'])
  gallery_file.write(tmp_path, {'shapes': one})
  found = gallery_file.read(tmp_path)['shapes']
  assert list(found.drawn) == [5, 10]
  np.testing.assert_array_equal(found.drawn[10], PIXELS + 1)
  np.testing.assert_array_equal(found.made, PIXELS)
  assert (found.sentences, found.labels, found.written) == (['紅'], ['a'], [])
  assert found.originals is None


def test_pictures_of_earlier_steps_stay_and_later_ones_go(examples):
  # A run that goes back to step 2 draws the pictures of step 3 again later.
  before = Gallery([], {1: PIXELS, 2: PIXELS, 3: PIXELS})
  found = gallery._made(Painter(2), examples, before, is_last=False)
  assert list(found.drawn) == [1, 2]
  assert found.drawn[2].shape == (1, 4, 4, 3)
  assert found.drawn[2].max() == 2
  assert found.confusion is None


def test_the_end_of_a_run_counts_answers_by_true_names(examples):
  found = gallery._made(Painter(4), examples, None, is_last=True)
  # The labels are sorted. The coat is taken for boots.
  assert found.labels == ['大衣', '靴子']
  np.testing.assert_array_equal(found.confusion, [[0, 1], [0, 2]])
  assert found.written == ['靴子'] * 3
