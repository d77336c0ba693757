"""Decoding gives the same logits and samples with a cache and without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe.infer import decode, forms, kv_cache
from moe.infer.prompts import Prompts, RowPrompt
from moe.infer.sampling import Sampling
from moe.modalities.ids import IdSpace
from moe.types import Cache, Outputs

EOS = 1
VOCAB_SIZE = 24
FREE = forms.free_table([None, None, None, *'abcdefghijklmnopqrstu'], EOS)


def rows(lengths, width, seed=0):
  """Right-padded random tokens that begin with the start id."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, VOCAB_SIZE, (len(lengths), width)).astype(np.int32)
  tokens[:, 0] = 0
  tokens[np.arange(width) >= np.array(lengths)[:, None]] = 0
  return tokens


@pytest.fixture(scope='module')
def full_logits(model):
  """A function that computes the logits of a row at once, without a cache."""
  functional, params, state = model

  @jax.jit
  def read(tokens, length):
    batch = decode.read_batch(tokens, length, jnp.zeros_like(length))
    hidden = functional.apply(params, state, batch, None, False).hidden
    return functional.head(params, hidden)

  def logits(tokens):
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(tokens)] = tokens
    length = np.array([len(tokens)], np.int32)
    return np.asarray(read(padded, length))[0, : len(tokens)]

  return logits


@pytest.mark.slow
def test_cached_logits_are_those_of_the_full_forward_pass(model, full_logits):
  functional, params, state = model
  prompt_lengths, width, steps = np.array([3, 7, 1], np.int32), 8, 6
  tokens = rows(prompt_lengths + steps, width + steps)
  is_prompt = np.arange(width) < prompt_lengths[:, None]
  prompts = np.where(is_prompt, tokens[:, :width], 0)
  read_prompts = jax.jit(functools.partial(decode.prefill, functional))
  read_token = jax.jit(functools.partial(decode.read_token, functional))
  logits_BV, cache = read_prompts(
    params,
    state,
    Prompts(prompts, prompt_lengths, None, None),
    kv_cache.empty_cache(functional.cache_shapes(3, 16)),
  )
  cached = [logits_BV]
  is_done = np.zeros((3,), bool)
  for step in range(steps):
    place = prompt_lengths + np.int32(step)
    batch = decode.token_batch(tokens[range(3), place], place, is_done)
    logits_BV, cache = read_token(params, state, batch, cache)
    cached.append(logits_BV)
  assert int(cache.index) == width + steps
  for row, length in enumerate(prompt_lengths):
    full = full_logits(tokens[row, : length + steps])[length - 1 :]
    ours = np.stack([logits[row] for logits in cached])
    np.testing.assert_allclose(ours, full, atol=1e-4)
    # The logits of neighbouring places differ, so the comparison can fail.
    assert np.abs(np.diff(full, axis=0)).max() > 0.1


def generate(model, prompts, settings, limit, seed=0, tables=None):
  functional, params, state = model
  write = decode.build_writer(functional, settings, EOS)
  tables = tables or [FREE] * len(prompts)
  rows = map(RowPrompt, prompts, tables)
  return decode.generate(write, params, state, [*rows], limit, seed)


def test_greedy_decoding_takes_the_argmax_of_the_full_pass_each_time(
  model, full_logits
):
  prompt = [5, 6, 7]
  (written,) = generate(model, [prompt], Sampling(temperature=0), 10)
  logits = full_logits([0, *prompt, *written])[3:-1]
  is_free = np.isin(np.arange(VOCAB_SIZE), [0, 2], invert=True)
  best = np.where(is_free, logits, -np.inf).argmax(axis=-1)
  assert written == best.tolist()
  assert len(set(written)) > 2


@pytest.mark.slow
def test_a_sample_is_the_same_alone_and_in_a_longer_batch(model):
  prompts = [[5, 6, 7], [], [9] * 20]
  together = generate(model, prompts, Sampling(), 12)
  assert generate(model, prompts[:1], Sampling(), 12) == together[:1]


def test_samples_differ_by_seed_and_by_row(bigram):
  prompts = [[5, 6, 7]] * 4
  first = generate(bigram, prompts, Sampling(temperature=2.0), 12, seed=1)
  assert first == generate(
    bigram, prompts, Sampling(temperature=2.0), 12, seed=1
  )
  assert first != generate(
    bigram, prompts, Sampling(temperature=2.0), 12, seed=2
  )
  assert len({tuple(row) for row in first}) == 4


def test_every_step_has_its_own_key(bigram):
  # All tokens are equally likely. If all steps used the same key, all draws
  # would be equal.
  functional, params, state = bigram
  uniform = functional, jnp.zeros_like(params), state
  (written,) = generate(uniform, [[5]], Sampling(), 16, seed=1)
  assert len(set(written)) > 4


def test_a_sharded_cache_changes_no_sample(bigram):
  functional, params, state = bigram
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('data',))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  shardings = Cache(rows, rows, NamedSharding(mesh, PartitionSpec()), [rows])
  prompts = [[5, 6]] * 4
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  write = decode.build_writer(functional, Sampling(), EOS, shardings)
  sharded = decode.generate(
    write, params, state, [RowPrompt(p, FREE) for p in prompts], 8
  )
  assert sharded == generate(bigram, prompts, Sampling(), 8)


def test_a_sample_ends_at_the_end_mark_or_at_the_limit(bigram):
  written = generate(bigram, [[5]] * 32, Sampling(temperature=2.0), 20)
  assert {len(row) for row in written} & set(range(1, 20))
  for row in written:
    assert EOS not in row[:-1]
    assert row[-1] == EOS or len(row) == 20


def test_free_text_never_holds_padding_unknown_or_unused_ids(bigram):
  # The model has 24 logits, and the vocabulary has 6 pieces. Only pieces 3 and
  # 4 have a text.
  table = forms.free_table([None, None, None, 'a', 'b', None], EOS)
  written = generate(
    bigram, [[3]] * 8, Sampling(temperature=5.0), 16, tables=[table] * 8
  )
  assert set().union(*written) == {EOS, 3, 4}


def test_each_row_follows_its_own_template(bigram):
  pieces = [None, None, None, '春', '秋', '風', '月', '，', '。', '春風']
  filled = ['字字，字', '字。']
  tables = [forms.form_table(pieces, EOS, text) for text in filled]
  written = generate(
    bigram, [[3]] * 8, Sampling(temperature=3.0), 9, tables=tables * 4
  )
  for row, ids in enumerate(written):
    assert ids[-1] == EOS
    text = ''.join(pieces[i] for i in ids[:-1])
    assert forms.shape(text) == filled[row % 2]


def test_few_programs_are_compiled_for_many_lengths(bigram):
  functional, params, state = bigram
  write = decode.build_writer(functional, Sampling(), EOS)
  for length in (1, 5, 15):
    prompt = RowPrompt([5] * length, FREE)
    decode.generate(write, params, state, [prompt], length)
  assert write._cache_size() == 1


def test_a_block_of_the_prompt_is_read_as_in_training(bigram):
  functional, params, state = bigram
  modality, read = IdSpace(16, image=4).modality, []

  class Recorded:
    def apply(self, params, state, batch, *args):
      read.append(batch)
      return functional.apply(params, state, batch, *args)

    head, cache_shapes = functional.head, functional.cache_shapes

  def prefill(params, state, prompts, jumps, limit, width):
    cache = kv_cache.empty_cache(functional.cache_shapes(2, 16))
    decode.prefill(Recorded(), params, state, prompts, cache, modality)
    return np.zeros((2, 1), np.int32), np.zeros(2, np.int32)

  # Place 1 reads token 5 and predicts the first token of the block. Places 2 to
  # 4 read the block.
  prompts, blocks = [[5, 6, 7, 8, 9], [5]], [[0, 1, 1, 1, 0], [0]]
  rows = [*map(RowPrompt, prompts, [FREE] * 2, blocks)]
  decode.generate(prefill, params, state, rows, 1)
  assert read[0].block_ids[0, :7].tolist() == [0, 1, 1, 1, 1, 0, 0]
  assert not read[0].block_ids[1].any()
  rows = [*map(RowPrompt, prompts, [FREE] * 2)]
  decode.generate(prefill, params, state, rows, 1)
  assert not read[1].block_ids.any()


def test_a_batch_to_read_has_the_modality_of_its_tokens():
  modality = IdSpace(16, image=4).modality
  tokens = jnp.array([[0, 5, 128, 131]], jnp.int32)
  batch = decode.read_batch(
    tokens, jnp.full((1,), 4), jnp.zeros((1,), jnp.int32), modality=modality
  )
  assert batch.modality.tolist() == [[0, 0, 1, 1]]


class Told:
  """A model that predicts, after each token, the token's extra number 'row'."""

  def apply(self, params, state, batch, rngs, train, cache=None):
    hidden = jax.nn.one_hot(batch.extras['row'], VOCAB_SIZE)
    cache = cache._replace(index=cache.index + batch.tokens.shape[1])
    return Outputs(hidden, state, cache, {}, {})

  def head(self, params, hidden, section=None):
    return hidden

  def cache_shapes(self, batch_size, length):
    return [jax.ShapeDtypeStruct((batch_size, length, 1, 1), jnp.float32)]


def test_the_model_is_told_the_extras_of_each_token_it_reads():
  write = decode.build_writer(Told(), Sampling(0.0), EOS)
  # The first prompt has two tokens, the second has one. The model only reads
  # extras. So it predicts the right numbers only if each token gets its extra.
  prompts = [
    RowPrompt([3, 3], FREE, (), {'row': np.array([4, 5, 6, 7, EOS])}),
    RowPrompt([3], FREE, (), {'row': np.array([8, 9, EOS])}),
  ]
  written = decode.generate(write, {}, {}, prompts, 6)
  assert written == [[5, 6, 7, EOS], [8, 9, EOS]]
