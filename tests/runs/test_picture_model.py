"""A picture model checks its sentences, settings and labels."""

import types

import numpy as np
import pytest

from moe.infer.pictures import Canvas
from moe.modalities.text import train_vocabulary
from moe.runs import picture_model, recognition
from moe.runs.drawing import Drawing
from moe.runs.picture_model import PictureModel

LENGTH = 24


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model that has a vocabulary and no parameters."""
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  text = '紅綠藍色圓方形' + ''.join(chr(0x4E00 + i) for i in range(60))
  vocabulary = train_vocabulary([text], 400, path, 'char')
  trained = types.SimpleNamespace(
    vocabulary=vocabulary,
    run=types.SimpleNamespace(
      data=types.SimpleNamespace(sequence_length=LENGTH)
    ),
  )
  made = PictureModel(trained, None)
  vars(made)['canvas'] = Canvas(512, (2, 3), 400)
  return made


def test_a_prompt_ends_with_a_line_break(model):
  vocabulary = model.trained.vocabulary
  assert vocabulary.decode(model.prompt('紅色圓形')) == '紅色圓形\n'


@pytest.mark.parametrize('text', ['', '  ', '紅色\n圓形'])
def test_a_prompt_must_be_one_line(model, text):
  with pytest.raises(ValueError, match='must be one line of text'):
    model.prompt(text)


def test_unknown_characters_are_named(model):
  with pytest.raises(ValueError, match='trained on, got 鱻 龘: use other'):
    model.prompt('紅鱻色龘')


def test_a_prompt_must_leave_room_for_a_picture(model):
  with pytest.raises(ValueError, match='at most 17 tokens'):
    model.prompt('紅' * 30)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'guidance': -1.0}, 'guidance=-1.0 must be from 0'),
    ({'guidance': float('nan')}, 'guidance=nan must be from 0'),
    ({'rerank': 0}, 'rerank=0 must be at least 1'),
  ],
)
def test_numbers_of_a_drawing_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    Drawing(**options)


def test_a_run_of_text_draws_nothing():
  text = types.SimpleNamespace(image_tokenizer='', workdir='runs/poems')
  with pytest.raises(ValueError, match='runs/poems must be a run that draws'):
    picture_model.of_run(text)


@pytest.mark.parametrize('text', ['靴子', '靴子,', '靴子,靴子', ','])
def test_labels_must_be_different(text):
  with pytest.raises(ValueError, match='at least two different labels'):
    recognition.labels_of(text)


def test_labels_are_ranked_by_their_gain():
  gains = np.array([[-1.0, 2.0, 0.5]])
  assert recognition.ranked(gains, ['a', 'b', 'c']) == [
    [('b', 2.0), ('c', 0.5), ('a', -1.0)]
  ]


def test_a_template_needs_a_place_for_the_label(model):
  with pytest.raises(ValueError, match="got '圖'"):
    recognition.gains(model, None, ['a', 'b'], ['圖'], 0.5)
