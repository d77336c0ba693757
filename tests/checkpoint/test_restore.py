"""Reading a checkpoint in part, with other names, dtypes or shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.checkpoint import listing, restore, save
from tests.checkpoint.states import abstract, assert_same, make_state


def test_another_shape_is_named_with_both_shapes(copy):
  with pytest.raises(ValueError, match=r'kernel is \(8, 6\) .* \(8, 4\)'):
    save.Checkpointer(copy).restore(2, abstract(make_state(width=6)))


def test_missing_and_superfluous_arrays_are_named(copy):
  other = make_state()._replace(state={'ema': jnp.zeros(2)})
  with pytest.raises(
    ValueError,
    match='state/ema is not in the checkpoint; '
    'state/router_bias is not in the model',
  ):
    save.Checkpointer(copy).restore(2, abstract(other))


def test_optional_arrays_may_be_on_one_side_only(copy):
  optional = 'state/(ema|router_bias)'
  state = {'ema': jnp.ones(2)}
  wanted = abstract(make_state()._replace(state=state))
  read, _ = save.Checkpointer(copy).restore(2, wanted, optional=optional)
  assert_same(read, make_state(2)._replace(state={'ema': jnp.zeros(2)}))


def test_parameters_alone_are_read_from_the_directory_of_a_run(copy):
  run = copy.parent / 'run'
  run.mkdir()
  copy.rename(run / 'checkpoints')
  for place in (run, run / 'checkpoints', run / 'checkpoints' / '2'):
    tree, meta = restore.load_params(place)
    wanted = make_state(2)
    assert_same(tree, {'params': wanted.params, 'state': wanted.state})
    assert meta['step'] == 2


def test_parameters_of_a_damaged_newest_step_come_from_the_one_before(
  copy, caplog
):
  (copy / '2' / 'state' / '_METADATA').unlink()
  _, meta = restore.load_params(copy)
  assert meta['step'] == 1
  assert 'state/_METADATA is missing' in caplog.text
  assert listing.steps(copy) == [1, 2]  # Reading deletes no damaged step.


def test_of_a_damaged_step_that_is_asked_for_the_sound_one_is_named(copy):
  (copy / '2' / 'state' / '_METADATA').unlink()
  with pytest.raises(
    ValueError,
    match='Step 2 .* got state/_METADATA is missing: step 1 is, so name .*/1,',
  ):
    restore.load_params(copy / '2')
  (copy / '1' / 'state' / '_METADATA').unlink()
  with pytest.raises(ValueError, match=r'No sound .* \(damaged: \[2, 1\]\)'):
    restore.load_params(copy / '2')


def test_parameters_are_cast_and_placed_as_asked(copy):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
  target = {'params': jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_state().params
  )}  # fmt: skip
  tree, _ = restore.load_params(copy, 1, target, placement=lambda *_: sharding)
  assert tree['params']['head'].dtype == jnp.bfloat16
  assert tree['params']['head'].devices() == {jax.devices()[3]}
  assert tree['params']['head'].tolist() == [1.5, 1.5, 1.5]


def test_an_assignment_renames_and_keeps(copy):
  target = {'params': {
    'encoder': {'kernel': jnp.zeros((8, 4)), 'twin': jnp.zeros((8, 4))},
    'new': jnp.full((2,), 7.0),
  }}  # fmt: skip
  assignment = [
    ('params/new', None),
    (r'params/encoder/\w+', 'params/decoder/kernel'),
  ]
  tree, _ = restore.load_params(copy, 2, target, assignment=assignment)
  kernel = make_state(2).params['decoder']['kernel']
  np.testing.assert_array_equal(tree['params']['encoder']['kernel'], kernel)
  np.testing.assert_array_equal(tree['params']['encoder']['twin'], kernel)
  np.testing.assert_array_equal(tree['params']['new'], [7.0, 7.0])


def test_an_assignment_to_nothing_names_both_paths(copy):
  target = {'params': {'encoder': jnp.zeros((8, 4))}}
  assignment = [('params/encoder', 'params/decode')]
  with pytest.raises(
    ValueError, match=r'params/encoder .* \(looked for params/decode\)'
  ):
    restore.load_params(copy, 2, target, assignment=assignment)


def test_without_assignment_every_parameter_must_be_used(copy):
  target = {'params': {'head': jnp.zeros((3,))}}
  with pytest.raises(ValueError, match='decoder/kernel is not in the model'):
    restore.load_params(copy, 2, target)
