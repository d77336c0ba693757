"""The folding model: padding, batches, recycling and initial values."""

import jax
import numpy as np
import pytest

from moe.layers import attention, attention_maps
from moe.objectives.folding import fold_again
from tests import folding_cases

pytestmark = pytest.mark.slow

MAPS = {'READS_ATTENTION': True, 'ATTENTION_KERNEL': "'xla'"}


@pytest.fixture(scope='module')
def fold():
  _, functional, params, state = folding_cases.tiny()

  def apply(batch, count):
    s, pair, _ = functional.read(params, state, batch, None, False)
    return fold_again(functional, params, (s, pair, batch), count)

  return jax.jit(apply, static_argnums=1)


def test_padding_does_not_move_a_chain(fold):
  run = folding_cases.tiny()[0]
  short = fold(folding_cases.batch(run, 16, (11, 11)), 1)
  long = fold(folding_cases.batch(run, 24, (11, 11)), 1)
  np.testing.assert_allclose(long.atoms[:, :11], short.atoms[:, :11], atol=1e-4)
  np.testing.assert_allclose(
    long.distogram[:, :11, :11], short.distogram[:, :11, :11], atol=1e-4
  )


def test_pairs_read_the_maps_of_all_layers_and_heads():
  run, functional, params, state = folding_cases.tiny(**MAPS)
  batch = folding_cases.batch(run)
  read = jax.jit(lambda p: functional.read(p, state, batch, None, False)[1:])
  pair, outputs = read(params)
  maps = attention_maps.corrected(outputs.maps, batch['valid'])
  assert maps.shape == (2, 16, 16, 2 * 2)  # Two layers have two heads each.
  layer = params['maps_in']
  without = params | {'maps_in': jax.tree.map(np.zeros_like, layer)}
  np.testing.assert_allclose(
    pair - read(without)[0],
    maps @ layer['kernel'] + layer['bias'],
    rtol=1e-4,
    atol=1e-5,
  )


def test_padding_does_not_change_maps():
  run, functional, params, state = folding_cases.tiny(**MAPS)
  read = jax.jit(lambda b: functional.read(params, state, b, None, False)[1])
  short = read(folding_cases.batch(run, 16, (11, 11)))
  long = read(folding_cases.batch(run, 24, (11, 11)))
  np.testing.assert_allclose(long[:, :11, :11], short[:, :11, :11], atol=1e-4)


@pytest.mark.parametrize('kernel', ['auto', 'fused'])
def test_maps_are_refused_for_a_kernel_that_makes_none(kernel):
  macros = MAPS | {'ATTENTION_KERNEL': f"'{kernel}'"}
  with pytest.raises(ValueError, match=f"ATTENTION_KERNEL='{kernel}' must be"):
    folding_cases.configured(**macros)


def test_a_chain_alone_folds_as_in_a_batch(fold):
  run = folding_cases.tiny()[0]
  both = folding_cases.batch(run)
  swapped = jax.tree.map(lambda x: x[::-1], both)
  one, two = fold(both, 1), fold(swapped, 1)
  np.testing.assert_allclose(
    two.atoms[1, both['valid'][0]], one.atoms[0, both['valid'][0]], atol=1e-4
  )


def test_recycling_changes_the_structure_but_no_shape(fold):
  batch = folding_cases.batch(folding_cases.tiny()[0])
  once, twice = fold(batch, 0), fold(batch, 1)
  assert jax.tree.map(np.shape, once) == jax.tree.map(np.shape, twice)
  assert np.abs(once.atoms - twice.atoms).max() > 1e-3


def test_each_residue_reads_residues_before_and_behind_it(fold):
  run = folding_cases.tiny()[0]
  batch = folding_cases.batch(run, 16, (16, 16))
  for changed, read in ((2, 12), (12, 2)):
    other = {name: array.copy() for name, array in batch.items()}
    other['tokens'][0, changed] = run.ids.ids('residue', np.array(3))
    other['codes'][0, changed] = 3
    moved = fold(other, 0).structure.states - fold(batch, 0).structure.states
    assert np.abs(moved[-1, 0, read]).max() > 1e-6
    np.testing.assert_allclose(moved[-1, 1], 0, atol=1e-5)


def test_a_new_model_puts_all_residues_at_the_origin():
  run, functional, _, _ = folding_cases.tiny()
  batch = folding_cases.batch(run)

  def first(key):
    params, state, _ = functional.init(key, batch)
    s, pair, _ = functional.read(params, state, batch, None, False)
    return functional.fold(params, (s, pair, batch), None, None, False)

  found = jax.jit(first)(jax.random.key(0))
  np.testing.assert_allclose(found.atoms[:, :, 1], 0, atol=1e-6)
  assert not found.plddt.any() and not found.distogram.any()


def test_a_long_chain_is_read_whole(monkeypatch):
  run, functional, params, state = folding_cases.tiny()
  # With 512 residues or more, plain XLA computes the queries in parts.
  batch = folding_cases.batch(run, 512, (300,))

  def read():
    found = lambda b: functional.read(params, state, b, None, False)[0]
    return np.asarray(jax.jit(found)(batch))[0, :300]

  by_parts = read()
  monkeypatch.setattr(attention, 'num_parts', lambda length, layout: 1)
  np.testing.assert_allclose(by_parts, read(), atol=1e-4)


def test_a_limit_for_blocks_is_refused():
  with pytest.raises(ValueError, match='LONGEST_BLOCK=8 must be 0'):
    folding_cases.configured(LONGEST_BLOCK=8)


@pytest.mark.parametrize(
  'macros',
  [
    {'TRIANGLE_HEADS': 4},
    # With 256 maps, their memory is the largest part.
    MAPS | {'NUM_LAYERS': 8, 'NUM_HEADS': 32},
  ],
  ids=['triangle attention', 'attention maps'],
)
def test_the_memory_of_a_pass_is_about_that_of_the_compiler(macros):
  run = folding_cases.configured(**macros).run
  functional, _, _ = run.functional(jax.devices()[:1])
  batch = folding_cases.batch(run, 128, (128,))
  params, state = jax.eval_shape(
    lambda: functional.init(jax.random.key(0), batch)[:2]
  )

  def fold(params, state):
    s, pair, _ = functional.read(params, state, batch, None, False)
    return functional.fold(params, (s, pair, batch), None, None, False)

  compiled = jax.jit(fold).lower(params, state).compile()
  needed = compiled.memory_analysis().temp_size_in_bytes
  said = 4 * functional.module.num_activations(128)
  assert 0.7 < needed / said < 1.3
