"""A picture model checks its input, and draws and describes in chunks."""

import types

import jax
import numpy as np
import pytest

from moe.infer.pictures import Canvas, Seen
from moe.infer.sampling import Sampling
from moe.modalities.ids import EOS, PATCHES
from moe.modalities.text import train_vocabulary
from moe.models.functional import make_functional
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.runs import picture_model, recognition
from moe.runs.drawing import Drawing
from moe.runs.picture_model import PictureModel
from tests.infer.test_pictures import CANVAS, NUM_CODES, SPACE
from tests.infer.test_pictures import model as parts  # noqa: F401

pytestmark = pytest.mark.slow

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


def test_a_template_needs_a_place_for_the_label():
  with pytest.raises(ValueError, match="got '圖'"):
    recognition.asked('a,b', ['圖'])


@pytest.mark.parametrize('alpha', [-0.1, 1.1, float('nan')])
def test_alpha_is_checked_before_a_model_is_read(alpha):
  with pytest.raises(ValueError, match='alpha'):
    recognition.asked('a,b', None, alpha)


@pytest.mark.parametrize('flags', [(['這是{}'], None), (None, 0.0)])
def test_flags_about_labels_need_labels(flags):
  with pytest.raises(ValueError, match='need --labels'):
    recognition.asked(None, *flags)
  assert recognition.asked(None) is None


def test_labels_of_unknown_characters_are_refused(model):
  with pytest.raises(ValueError, match='A label .* got 鱻: use other words'):
    recognition.answers(model, None, recognition.asked('紅色,鱻', ['{}']))


class Characters:
  """A vocabulary in which each id is a character."""

  pad, eos, unk, size = 0, EOS, 2, 128

  def is_byte(self, index):
    return False

  def decode(self, ids):
    return ''.join(chr(0x4E00 + i) for i in ids if i != EOS)

  def encode(self, text):
    return [max(3, ord(c) - 0x4E00) for c in text]


@pytest.fixture(scope='module')
def painter(parts):  # noqa: F811
  """A model that reads patches and has experts for each modality."""
  functional, params, state = parts
  trained = types.SimpleNamespace(
    functional=functional,
    params=params,
    state=state,
    mesh=make_mesh(MeshShape(), jax.devices()[:1]),
    row_parts=1,
    ids=SPACE,
    vocabulary=Characters(),
    run=types.SimpleNamespace(data=types.SimpleNamespace(sequence_length=16)),
  )
  made = PictureModel(trained, None)
  vars(made)['canvas'] = CANVAS
  return made


@pytest.fixture(scope='module')
def painter_on_devices(painter):
  """The same model on eight devices; each has an expert and some rows."""
  mesh, table = make_mesh(MeshShape(data=2, expert=4)), rules.table('standard')
  one = painter.trained
  functional = make_functional(
    one.functional.module,
    rules.activation_rules(table),
    rules.layout(table, mesh),
  )
  place = jax.NamedSharding(mesh, jax.P())
  trained = types.SimpleNamespace(
    **vars(one)
    | {
      'functional': functional,
      'mesh': mesh,
      'row_parts': 8,
      'params': jax.device_put(one.params, place),
      'state': jax.device_put(one.state, place),
    }
  )
  made = PictureModel(trained, None)
  vars(made)['canvas'] = CANVAS
  return made


def patches(count):
  shape = count, NUM_CODES, 3
  values = np.random.default_rng(0).integers(1, 256, shape, np.uint8)
  masks = np.full(shape[:2], SPACE.mask, np.int32)
  return Seen(masks, {PATCHES: values})


def test_a_caption_of_patches_begins_with_the_likeliest_token(painter):
  # Both methods give patches to the experts of images, as in training.
  seen = patches(8)
  tokens = [i for i in range(128) if i == EOS or i > 2]
  nats = painter.nats(seen, [[token] for token in tokens])
  wanted = [Characters().decode([tokens[i]]) for i in nats.argmin(axis=1)]
  assert [text[:1] for text in painter.write(seen)] == wanted


def test_a_picture_and_a_caption_do_not_depend_on_the_chunks(
  painter, monkeypatch
):
  seen = patches(3)
  drawing = Drawing(1.0, sampling=Sampling(5.0), seed=5)
  sentences = ['三三', '丁丁', '丁丁']
  codes = painter.draw_codes(sentences, drawing)
  written = painter._write(seen, 2, Sampling(1.0), 5)
  monkeypatch.setattr(picture_model, '_MAX_ROWS', 2)
  np.testing.assert_array_equal(painter.draw_codes(sentences, drawing), codes)
  # Each chunk has one picture. Without its index, the seed would give equal
  # pictures to equal sentences.
  assert (codes[1] != codes[2]).any()
  assert painter._write(seen, 2, Sampling(1.0), 5) == written


def test_eight_devices_draw_and_listen_like_one(painter, painter_on_devices):
  drawing = Drawing(2.0, sampling=Sampling(5.0), seed=5)
  sentences = ['三三', '丁丁', '丁丁三']
  seen, ids = patches(3), [painter.caption(text) for text in sentences]
  one, eight = (
    (
      made.draw_codes(sentences, drawing),
      made.write(seen),
      made.nats(seen, ids),
    )
    for made in (painter, painter_on_devices)
  )
  np.testing.assert_array_equal(eight[0], one[0])
  assert eight[1] == one[1]
  np.testing.assert_allclose(eight[2], one[2], rtol=1e-5, atol=1e-5)
