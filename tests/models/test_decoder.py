"""The decoder: documents, cached decoding, heads, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.models.functional import Functional
from moe.types import PLACE_FIELDS, Cache
from tests.models import factories

B, T, S = 2, 8, 10
# One dense block, then a sparse one.
MODULE = factories.make_decoder(num_dense_prefix=1)


@functools.cache
def compiled():
  """Returns (params, compiled function from a batch to the outputs)."""
  params = factories.make_params(MODULE, factories.make_batch([[1] * T] * B))
  apply = jax.jit(Functional(MODULE).apply, static_argnums=(3, 4))
  return params, lambda batch, cache=None: apply(
    params, {}, batch, None, False, cache
  )


def part_of(batch, columns):
  """Returns some columns of the first row, padded with zeros to [B, T]."""
  part = jax.tree.map(lambda a: a[:1, columns], batch)
  pad = lambda a: np.pad(a, [(0, B - a.shape[0]), (0, T - a.shape[1])])
  return jax.tree.map(pad, part)


def test_documents_of_one_row_do_not_see_each_other():
  packed = factories.make_batch([[1, 1, 1, 2, 2, 2, 2, 2], [1] * T])
  _, run = compiled()
  together = run(packed).hidden
  first = run(part_of(packed, slice(3))).hidden
  second = run(part_of(packed, slice(3, T))).hidden
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  close(together[0, :3], first[0, :3])
  close(together[0, 3:], second[0, :5])


def test_cached_decoding_equals_one_pass_over_the_whole():
  # The prompts have 3 and 5 tokens; the first is padded on the right to 5. Then
  # each row gets 3 more tokens.
  lengths = np.array([3, 5])
  documents = factories.make_batch([[1] * 6 + [0] * 2, [1] * T])
  _, run = compiled()
  whole_BTD = run(documents).hidden

  slots = Functional(MODULE).cache_shapes(B, S)
  empty = jnp.zeros((B, S), jnp.int32)
  cache = Cache(
    empty,
    empty,
    jnp.array(0, jnp.int32),
    jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), slots),
  )
  places = np.arange(5) + np.zeros((B, 1), int)
  inside = places < lengths[:, None]
  prompt = jax.tree.map(lambda a: np.where(inside, a[:, :5], 0), documents)
  outputs = run(prompt, cache)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  for b, length in enumerate(lengths):
    close(outputs.hidden[b, :length], whole_BTD[b, :length])
  for step in range(3):
    place = np.arange(B), lengths + step
    token = jax.tree.map(lambda a, place=place: a[place][:, None], documents)
    outputs = run(token, outputs.cache)
    close(outputs.hidden[:, 0], whole_BTD[place])
  assert int(outputs.cache.index) == 8
  np.testing.assert_array_equal(
    outputs.cache.segment_ids,
    [[1, 1, 1, 0, 0, 1, 1, 1, 0, 0], [1] * 8 + [0] * 2],
  )


def test_parameters_are_as_many_as_by_hand():
  # V = 12, D = 16, N = 4, K = 2, H = 8, F = 24; E = 4 experts of width 10.
  attention = 16 * 8 * (4 + 2 + 2) + 4 * 8 * 16 + 8 + 8  # q, k, v; out; norms
  dense = 3 * 16 * 24
  sparse = 4 * 3 * 16 * 10 + 16 * 4  # experts, router
  blocks = 2 * (attention + 16 + 16) + dense + sparse
  total = 12 * 16 + blocks + 16  # embedding, last norm
  params, _ = compiled()
  assert sum(a.size for a in jax.tree.leaves(params)) == total


@pytest.mark.parametrize('tied', [True, False])
def test_the_head_reads_the_table_of_its_kind(tied):
  module = factories.make_decoder(decoder=dict(tie_embeddings=tied))
  params = factories.make_params(module, factories.make_batch([[1] * T]))
  assert ('output' in params) != tied
  table_VD = params['embedding' if tied else 'output']['table']
  hidden = np.random.RandomState(0).randn(3, factories.D_MODEL).astype('f4')
  np.testing.assert_allclose(
    module.head_of(params)(hidden), hidden @ table_VD.T, rtol=1e-5, atol=1e-5
  )


def shapes(module, **options):
  batch = factories.make_batch([[1] * T] * B)
  f = Functional(module)

  def run():
    params, state, _ = f.init(jax.random.key(0), batch)
    outputs = f.apply(params, state, batch, None, **options)
    return params, outputs, f.head(params, outputs.hidden)

  return jax.eval_shape(run)


def test_bfloat16_computes_in_bfloat16_beside_float32_parameters_and_logits():
  module = factories.make_decoder(decoder=dict(dtype='bfloat16'))
  params, outputs, logits = shapes(module, train=True)
  assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  assert outputs.hidden.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  sums = jax.tree.leaves((outputs.losses, outputs.metrics))
  assert {a.dtype for a in sums} == {jnp.dtype('float32')}


@pytest.mark.parametrize('train', [True, False])
def test_outputs_have_their_shapes(train):
  _, outputs, logits = shapes(MODULE, train=train)
  assert outputs.hidden.shape == (B, T, factories.D_MODEL)
  assert logits.shape == (B, T, factories.VOCAB_SIZE)
  assert outputs.cache is None
  entropies = {'local_entropy', 'global_entropy'}
  assert set(outputs.losses) == {'load_balance', 'router_z', *entropies}
  # The first dim of a metric counts the sparse layers. This model has one.
  assert outputs.metrics['load'][0].shape == (1, factories.NUM_EXPERTS)
  assert outputs.metrics['dropped'][0].shape == (1,)


def test_every_field_that_a_model_reads_matters():
  documents = factories.make_batch([[1] * T] * B)
  _, run = compiled()
  hidden = run(documents).hidden
  changes = {
    'tokens': (documents.tokens + 1) % factories.VOCAB_SIZE,
    'segment_ids': np.repeat([[1, 2]], T // 2, axis=1).repeat(B, 0),
    'positions': documents.positions * 2,
    'block_ids': np.ones_like(documents.block_ids),
  }
  for name in PLACE_FIELDS:
    array = changes.get(name, getattr(documents, name) + 1)
    array = array.astype(getattr(documents, name).dtype)
    differs = np.abs(
      run(documents._replace(**{name: array})).hidden - hidden
    ).max()
    assert (differs > 1e-3) == (name in changes), name


def test_the_rotary_table_gives_the_positions_of_tokens_that_have_a_place():
  tables = {'extra_tables': (('place', 9),)}
  plain, with_places = (
    Functional(factories.make_decoder(decoder={**tables, **more}))
    for more in ({}, {'rotary_table': 'place'})
  )
  place = np.array([[0, 0, 1, 2, 3, 2, 3, 4]] * B, np.int32)
  batch = factories.make_batch([[1] * T] * B)._replace(extras={'place': place})
  params = factories.make_params(plain.module, batch)
  run = lambda model, batch: model.apply(params, {}, batch, None, False).hidden
  found = run(with_places, batch)
  moved = batch._replace(positions=np.where(place, place, batch.positions))
  np.testing.assert_allclose(found, run(plain, moved), atol=1e-5)
  assert np.abs(found - run(plain, batch)).max() > 1e-3


def test_a_rotary_table_that_the_model_lacks_is_refused():
  with pytest.raises(
    ValueError, match="rotary_table='place' must be one of row"
  ):
    factories.make_decoder(
      decoder={'extra_tables': (('row', 3),), 'rotary_table': 'place'}
    )
