"""Scores of a picture model that copies its training pictures."""

import types

import numpy as np
import pytest

from moe.evaluate import judge as judge_lib
from moe.infer.pictures import Seen
from moe.runs import (
  drawing_scores,
  held_out_pictures,
  picture_losses,
  picture_scores,
  tokenizer_report,
)
from moe.runs.held_out_pictures import HeldOut
from tasks.pictures import sentences

pytestmark = pytest.mark.slow

NUM = 16


def pictures_of(seed):
  """Pictures with sentences and facts; half are dark, and half are light."""
  rng = np.random.default_rng(seed)
  dark = rng.integers(0, 60, (NUM // 2, 8, 8, 3), np.uint8)
  light = rng.integers(190, 256, (NUM // 2, 8, 8, 3), np.uint8)
  names = (NUM // 2) * ['一張很暗的圖'] + (NUM // 2) * ['一張明亮的圖']
  return HeldOut(
    'shades',
    np.concatenate([dark, light]),
    names,
    [{'name': name} for name in names],
  )


class Copier:
  """Draws its training pictures, and knows which sentence is true."""

  def __init__(self, training):
    self.training = training
    self.tokenizer = types.SimpleNamespace(decode=lambda codes: codes)

  def can_draw(self, sentence):
    return bool(sentence)

  def encode(self, pixels):
    return pixels

  def see(self, pixels):
    return Seen(pixels)

  def draw(self, sentences, drawing):
    del drawing
    return [
      types.SimpleNamespace(pixels=pixels)
      for pixels in self.training.pixels[: len(sentences)]
    ]

  def write(self, seen):
    return [
      '一張明亮的圖' if picture.mean() > 128 else '一張很暗的圖'
      for picture in seen.tokens
    ]

  def caption(self, text):
    return [len(text), '暗' in text]

  def nats(self, seen, ids):
    if seen is None:
      return np.ones(len(ids))
    is_dark = seen.tokens.mean(axis=(1, 2, 3)) < 128
    is_said = np.array([is_dark for _, is_dark in ids])
    return 2.0 - (is_dark[:, None] == is_said)


def code_nats(model, codes, sentences, is_hidden):
  del model, sentences
  return np.full(len(codes), 3.0 + is_hidden)


@pytest.fixture(scope='module')
def scores():
  training, held_out = pictures_of(0), pictures_of(1)
  judge = judge_lib.train(
    np.tile(training.pixels, (8, 1, 1, 1)), 8 * training.facts, epochs=2
  )
  wanted = held_out_pictures.Request(
    lambda text, facts: {'all': text == facts['name']}, num_drawn=NUM
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(picture_losses, 'code_nats', code_nats)
    found = picture_scores.score(
      Copier(training), held_out, training, judge, wanted
    )
  return {s.name.removeprefix('shades: '): s for s in found.scores}


def test_each_kind_of_score_tells_what_a_copier_does(scores):
  copied = 'drawn pictures nearer to a training picture than 95% of held-out'
  wanted = {
    f'{copied} ones': 1,
    'captions, BLEU of characters': 1,
    'captions, CIDEr-D': 10,
    'caption right, all': 1,
    'recognised, alpha 1': 1,
    'macro-F1': 1,
    'what the sentence saves': 1,
  }
  assert {name: scores[name].value for name in wanted} == pytest.approx(wanted)
  # The nearest training picture is of the same shade, so its sentence is right.
  borrowed = scores['captions of the nearest training picture, CIDEr-D']
  assert borrowed.value == pytest.approx(10)
  # The 16 real pictures are also compared with each other, 8 with 8. So all
  # sets have 8 pictures.
  assert scores['FD-own, drawn against real'].n == NUM // 2


def test_a_rival_that_is_also_true_is_no_mistake(monkeypatch):
  names = ['長褲', '長褲', '短靴', '短靴'] * (NUM // 4)
  forms = ['圖中是{}', '{}'] * (NUM // 2)
  texts = [form.format(name) for form, name in zip(forms, names, strict=True)]
  pixels = pictures_of(1).pixels
  facts = [{'name': name} for name in names]
  # The model knows trousers alone, and likes short sentences.
  nats = lambda seen, ids: np.array(
    [[1.0 + ('長褲' not in text) + 0.1 * ('圖' in text) for (text,) in ids]]
    * NUM
  )
  model = types.SimpleNamespace(caption=lambda text: [text], nats=nats)
  monkeypatch.setattr(picture_losses, 'code_nats', code_nats)
  below, found, *_ = picture_scores._alignment(
    held_out_pictures.Mean('clothes', ''),
    model,
    HeldOut('clothes', pixels, texts, facts),
    Seen(pixels),
    pixels,
    sentences.agreement,
  )
  # The next sentence of every second picture is true, too.
  assert (below.value, below.n) == (0.5, NUM // 2)
  # The model finds a true sentence for all trousers, and for no boots.
  assert (found.value, found.n) == (0.5, NUM)


def test_each_score_knows_which_direction_is_better(scores):
  lower = {name for name, s in scores.items() if not s.is_higher_better}
  assert {'calibration error', 'KID, drawn against real'} <= lower
  assert not {'macro-F1', 'captions, BLEU of characters'} & lower


class Painter:
  """Draws light pictures if the guidance is 3, and dark ones otherwise."""

  def can_draw(self, sentence):
    return sentence != '鱻'

  def draw(self, sentences, drawing):
    pixels = np.full((8, 8, 3), 220 if drawing.guidance == 3 else 30, np.uint8)
    return [types.SimpleNamespace(pixels=pixels)] * len(sentences)


def test_guidance_is_chosen_on_sentences_that_are_not_scored():
  training, held_out = pictures_of(0), pictures_of(1)
  judge = judge_lib.train(
    np.tile(training.pixels, (8, 1, 1, 1)), 8 * training.facts, epochs=2
  )
  wanted = held_out_pictures.Request(None, guidances=(1.0, 3.0))
  # All pictures of the second half are light.
  others = held_out.part(NUM // 2, NUM)
  chosen = drawing_scores.with_guidance(Painter(), others, judge, wanted)
  assert chosen.guidance == 3.0


def test_all_kinds_of_pictures_are_drawn_and_choose_the_guidance():
  # All dark pictures come first.
  held_out = pictures_of(1)
  wanted = held_out_pictures.Request(
    None, guidances=(1.0, 3.0), num_drawn=NUM // 2
  )
  known = drawing_scores.drawable(Painter(), held_out)
  first, others = drawing_scores.to_draw(known, wanted)
  assert {*first.captions} == {*others.captions} == {*held_out.captions}
  for part in (first, others):
    is_light = [pixels.mean() > 128 for pixels in part.pixels]
    assert [text == '一張明亮的圖' for text in part.captions] == is_light


def test_drawn_pictures_are_compared_with_those_that_can_be_drawn():
  training, held_out = pictures_of(0), pictures_of(1)
  held_out.captions[NUM // 2 :] = (NUM // 2) * ['鱻']
  known = drawing_scores.drawable(Painter(), held_out)
  judge = judge_lib.train(training.pixels, training.facts, epochs=1)
  found = drawing_scores.judged(
    held_out_pictures.Mean('shades', ''),
    held_out,
    held_out.pixels,
    known,
    known,
    known.pixels,
    judge,
  )
  values = {score.name: score for score in found}
  # The 8 light pictures cannot be drawn. The dark ones make sets of 4.
  assert values['shades: FD-own, drawn against real'].n == NUM // 4


def test_a_third_of_few_sentences_is_for_the_choice_of_the_guidance():
  held_out = pictures_of(1)
  held_out.captions[3] = '鱻'
  wanted = held_out_pictures.Request(None, guidances=(1.0, 3.0), num_drawn=NUM)
  known = drawing_scores.drawable(Painter(), held_out)
  first, others = drawing_scores.to_draw(known, wanted)
  # The model cannot draw one of the 16 sentences.
  assert (len(first.captions), len(others.captions)) == (10, 5)
  assert '鱻' not in first.captions


def test_pictures_without_attributes_are_scored_without_a_judge():
  training, held_out = pictures_of(0), pictures_of(1).part(0, 5)
  for facts in held_out.facts:
    facts.clear()
  wanted = held_out_pictures.Request(sentences.agreement, num_drawn=NUM)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(picture_losses, 'code_nats', code_nats)
    found = picture_scores.score(
      Copier(training), held_out, training, None, wanted
    )
  names = {score.name for score in found.scores}
  assert 'shades: what the sentence saves' in names
  assert not any('judged' in name or 'right' in name for name in names)
  # Five pictures are too few to find a sentence among 16.
  assert all(np.isfinite(score.value) for score in found.scores)


def test_tags_are_further_sentences_about_a_picture():
  held_out = pictures_of(0).part(0, 1)
  held_out.captions[0] = '諾托風格：笑臉'
  held_out.facts[0].update(name='笑臉', tags=['開心', '臉'])
  (found,) = picture_scores._references(held_out)
  assert found == ['諾托風格：笑臉', '諾托風格：開心', '諾托風格：臉']


def test_a_folder_without_a_held_out_picture_is_refused():
  wanted = held_out_pictures.Request(None)
  pictures = {'./few': {'train': 'nowhere'}}
  with pytest.raises(ValueError, match='pictures=./few must have a held-out'):
    picture_scores.score_sources(None, pictures, wanted)
  with pytest.raises(ValueError, match='pictures=./few must have a held-out'):
    tokenizer_report.report(None, pictures, '')


def test_a_judge_is_trained_once(tmp_path, monkeypatch):
  training = pictures_of(0)
  args = tmp_path, 'content', training.pixels, training.facts, 1
  first = judge_lib.of_cache(*args)
  monkeypatch.setattr(judge_lib, 'train', None)
  again = judge_lib.of_cache(*args)
  assert again.values == first.values
  np.testing.assert_array_equal(
    again.params['to_name'], first.params['to_name']
  )
