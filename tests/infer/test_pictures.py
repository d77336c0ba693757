"""Pictures are drawn by cached decoding, and read as blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.evaluate import captions, likelihood
from moe.infer import decode, kv_cache, pictures, sampling
from moe.infer.pictures import Seen
from moe.infer.prompts import Prompts
from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE
from moe.modalities.ids import EOS, PATCHES, IdSpace
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.models.stack import Stack
from moe.routing import gates
from moe.types import Extra

pytestmark = pytest.mark.slow

RANGES = (('command', 1), ('image', 9))
SPACE = IdSpace(128, command=1, image=9)
GRID, NUM_CODES = (2, 3), 6
CANVAS = pictures.Canvas(
  SPACE.begin('image'),
  GRID,
  SPACE.mask,
  (Extra('row'), Extra('column'), Extra(PATCHES, (3,), 'uint8')),
)
PROMPTS = ([5, 6, 7], [9, 8])
CAPTIONS = ([5, 6, EOS], [7, EOS], [9, 9, 9, 9, EOS])


@pytest.fixture(scope='module')
def model():
  """(functional, params, state) of a model with text and image experts."""
  block = functools.partial(
    Block,
    attention=functools.partial(
      Attention, num_heads=2, num_kv_heads=2, head_dim=8
    ),
    feed_forward=functools.partial(FeedForward, width=16),
    moe=functools.partial(
      MoE,
      num_experts=4,
      expert_d_ff=8,
      top_k=1,
      router=functools.partial(
        gates.ModalityGrouped, router=gates.Switch, reserved=(2, 2)
      ),
    ),
  )
  functional = Functional(
    Decoder(
      functools.partial(Stack, block=block, num_layers=1),
      SPACE.size,
      16,
      extra_tables=(('row', 3), ('column', 4)),
      ranges=RANGES,
      code_levels=(3, 3),
      patch_values=3,
    )
  )
  batch = decode.read_batch(
    jnp.zeros((2, 8), jnp.int32),
    jnp.full((2,), 8, jnp.int32),
    jnp.zeros((2,), jnp.int32),
    extras=CANVAS.extras_of(np.zeros(2, int), 8),
  )
  init = jax.jit(lambda key: functional.init(key, batch)[:2])
  params, state = init(jax.random.key(1))
  return functional, jax.tree.map(lambda a: 3 * a, params), state


@pytest.fixture(scope='module')
def greedy(model):
  """A drawing function with bound parameters; it takes the likeliest codes."""
  functional, params, state = model
  artist = pictures.build_artist(
    functional, sampling.Sampling(0.0), CANVAS, SPACE.modality
  )
  return functools.partial(artist, params, state)


def full_logits(model, prompt, codes):
  """Logits [codes, 9 image ids], from one pass over the whole document."""
  functional, params, state = model
  size = len(prompt) + 1 + NUM_CODES
  tokens = np.array([[0, *prompt, *(codes + CANVAS.begin)]], np.int32)
  batch = decode.read_batch(
    tokens,
    np.array([size]),
    np.zeros(1, np.int32),
    modality=SPACE.modality,
    extras=CANVAS.extras_of(np.array([len(prompt) + 1]), size),
  )
  outputs = functional.apply(params, state, batch, None, False)
  logits = functional.head(params, outputs.hidden, 'image')[0]
  return np.asarray(logits[len(prompt) : -1])


def test_cached_logits_of_codes_are_those_of_the_full_pass(model):
  functional, params, state = model
  prompt, codes = PROMPTS[0], np.array([8, 0, 3, 1, 7, 2])
  size = 1 + len(prompt) + NUM_CODES
  extras = CANVAS.extras_of(np.array([1 + len(prompt)]), size)
  length = np.array([1 + len(prompt)], np.int32)
  tokens = np.array([[0, *prompt]], np.int32)
  beginning = Prompts(tokens, length, 0 * length, 0 * length, extras=extras)
  layers = functional.cache_shapes(1, size)
  rest = SPACE.modality, 'image'
  logits, cache = decode.prefill(
    functional, params, state, beginning, kv_cache.empty_cache(layers), *rest
  )
  found = [logits[0]]
  for step, code in enumerate(codes[:-1]):
    batch = decode.token_batch(
      jnp.array([code + CANVAS.begin], jnp.int32),
      length + step,
      jnp.zeros(1, bool),
      SPACE.modality,
      extras,
    )
    logits, cache = decode.read_token(
      functional, params, state, batch, cache, 'image'
    )
    found.append(logits[0])
  wanted = full_logits(model, prompt, codes)
  np.testing.assert_allclose(np.stack(found), wanted, rtol=1e-5, atol=1e-5)


def test_a_batch_of_both_orders_equals_its_rows_alone(model):
  functional, params, state = model
  codes = np.array([8, 0, 3, 1, 7, 2]) + CANVAS.begin
  tokens = np.array([[0, 5, 6, 7, *codes], [0, *codes, 9, 8, 7]], np.int32)
  is_read = np.array([[0] * 10, [1] * 7 + [0] * 3], np.int32)
  extras = CANVAS.extras_of(np.array([4, 1]), 10)

  def hidden(rows):
    batch = decode.read_batch(
      tokens[rows],
      np.full(len(rows), 10, np.int32),
      np.zeros(len(rows), np.int32),
      is_read[rows],
      SPACE.modality,
      {name: values[rows] for name, values in extras.items()},
    )
    return functional.apply(params, state, batch, None, False).hidden

  alone = np.concatenate([hidden([0]), hidden([1])])
  np.testing.assert_allclose(hidden([0, 1]), alone, rtol=1e-5, atol=1e-5)


def masks(prompt):
  return [SPACE.mask] * len(prompt)


@pytest.mark.parametrize('guidance', [0.0, 1.0, 3.0])
def test_cached_drawing_is_the_likeliest_of_the_full_pass(
  model, greedy, guidance
):
  made = pictures.draw(greedy, CANVAS, PROMPTS, guidance, 0)
  for prompt, codes in zip(PROMPTS, made, strict=True):
    with_it = full_logits(model, prompt, codes)
    without = full_logits(model, masks(prompt), codes)
    # Guidance 0 is the model without the prompt, guidance 1 the model with it.
    wanted = without + guidance * (with_it - without)
    np.testing.assert_array_equal(codes, wanted.argmax(axis=1))


def test_guidance_mixes_the_two_halves_of_a_batch():
  logits = jnp.array([[1.0, 3.0], [2.0, 0.0]])
  # Row c has the condition, row u has none, and s is 3. So u + s (c - u) is
  # 2 + 3 (1 - 2) = -1, and 0 + 3 (3 - 0) = 9.
  np.testing.assert_allclose(pictures.guided(logits, 3.0), [[-1.0, 9.0]])


def test_codes_that_are_given_stay(greedy):
  given = np.array([[8, 0, 3], [1, 1, 1]])
  made = pictures.draw(greedy, CANVAS, PROMPTS, 2.0, 0, given)
  np.testing.assert_array_equal(made[:, :3], given)


def test_a_picture_does_not_depend_on_the_others_of_its_batch(model):
  functional, params, state = model
  artist = functools.partial(
    pictures.build_artist(
      functional, sampling.Sampling(), CANVAS, SPACE.modality
    ),
    params,
    state,
  )
  both = pictures.draw(artist, CANVAS, PROMPTS, 2.0, 7)
  alone = pictures.draw(artist, CANVAS, PROMPTS[:1], 2.0, 7)
  np.testing.assert_array_equal(both[:1], alone)
  # A list may be drawn in chunks.
  rest = pictures.draw(artist, CANVAS, PROMPTS[1:], 2.0, 7, first_index=1)
  np.testing.assert_array_equal(both[1:], rest)


@pytest.mark.parametrize('read', ['codes', 'patches', 'nothing'])
def test_scores_of_captions_equal_brute_force(model, read):
  functional, params, state = model
  codes = np.array([[0, 1, 2, 3, 4, 5], [8, 7, 6, 5, 4, 3]])
  tokens, extras = (codes + CANVAS.begin).astype(np.int32), {}
  if read != 'codes':
    tokens = np.full_like(tokens, SPACE.mask)
  if read == 'patches':
    shape = 2, NUM_CODES, 3
    patches = np.random.default_rng(0).integers(1, 256, shape, np.uint8)
    extras[PATCHES] = patches
  listen = captions.build_listener(functional, CANVAS, SPACE.modality)
  ids, lengths = captions.padded(CAPTIONS)
  found = listen(params, state, Seen(tokens, extras), ids, lengths)
  documents = []
  for row, picture in enumerate(tokens):
    for caption in CAPTIONS:
      size = NUM_CODES + len(caption)
      place = CANVAS.extras_of(np.zeros(1, int), size)
      if extras:
        place[PATCHES][0, :NUM_CODES] = patches[row]
      documents.append(
        likelihood.Document(
          np.array([*picture, *caption], np.int32),
          1,
          1,
          np.arange(size) >= NUM_CODES,
          block_ids=(np.arange(size) < NUM_CODES).astype(np.int32),
          modality=(np.arange(size) < NUM_CODES).astype(np.int32),
          extras={name: values[0] for name, values in place.items()},
        )
      )
  wanted = likelihood.score_documents(
    functional, params, state, documents, likelihood.Context(16, 16, 8)
  )
  np.testing.assert_allclose(np.ravel(found), wanted, rtol=1e-6, atol=1e-5)


def test_a_caption_sees_its_picture(model):
  functional, params, state = model
  listen = captions.build_listener(functional, CANVAS, SPACE.modality)
  ids, lengths = captions.padded(CAPTIONS)
  codes = np.array([[0, 1, 2, 3, 4, 5], [8, 7, 6, 5, 4, 3]], np.int32)
  nats = listen(params, state, Seen(codes + CANVAS.begin), ids, lengths)
  assert np.abs(nats[0] - nats[1]).min() > 1e-3


def test_information_gain_takes_away_what_is_expected():
  # There are two labels with two sentences each. `given` has the nats of the
  # sentences given a picture, and `without` their nats without a picture.
  given = -np.log([[[0.2, 0.4], [0.5, 0.1]]])
  without = -np.log([[0.1, 0.2], [0.5, 0.1]])
  gains = captions.information_gain(given, without, 1.0)
  # With the picture, the mean probabilities of the labels are .3 and .3.
  # Without it, they are .15 and .3. So the gains are ln 2 and 0.
  np.testing.assert_allclose(gains, [[np.log(2), 0]], atol=1e-9)
  raw = captions.information_gain(given, without, 0.0)
  np.testing.assert_allclose(raw, np.log([[0.3, 0.3]]), atol=1e-9)


def test_only_ids_of_the_range_of_the_target_compete(model):
  functional, params, _ = model
  hidden = jax.random.normal(jax.random.key(3), (3, 16))
  targets = jnp.array([5, SPACE.begin('image') + 2, EOS])
  logits = functional.restrict(functional.head(params, hidden), targets)
  probs = np.asarray(jax.nn.softmax(logits, axis=-1))
  number = SPACE.range_of(np.arange(SPACE.size))
  sums = [probs[:, number == n].sum(axis=1) for n in range(3)]
  np.testing.assert_allclose(sums, [[1, 0, 1], [0, 0, 0], [0, 1, 0]], atol=1e-6)
  # The ids that pad the range do not compete with codes.
  assert probs[1, SPACE.begin('image') + 9 :].max() < 1e-9
  section = functional.head(params, hidden, 'image')
  np.testing.assert_allclose(
    jax.nn.softmax(section[1]), probs[1, -128:][:9], atol=1e-6
  )
