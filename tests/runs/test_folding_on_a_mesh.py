"""A folding model trains and folds alike on one and eight devices."""

import jax
import numpy as np
import pytest

from tests import folding_cases

pytestmark = pytest.mark.slow

SIZES = tuple(range(9, 17))
# Four experts, of which a token chooses two, drop tokens of a group of 8.
MODEL = {'BATCH_SIZE': 8, 'NUM_EXPERTS': 4, 'RECYCLES': 0, 'MESH_DATA': -1}
MESHES = {
  'batch, parameters and experts': {
    'MESH_FSDP': 2,
    'MESH_EXPERT': 2,
    'GROUP_SIZE': 8,
  },
  # A device has some of the rows of each pair array. The default group has the
  # 8 residues of a chain that lie on one device.
  'rows of pairs': {'MESH_CONTEXT': 2, 'MESH_EXPERT': 2},
}


def trained(devices, **macros):
  """(loss, atoms after a step of training) on a mesh.

  All parameters are random, since the blocks of a new model change nothing.
  """
  run = folding_cases.configured(**(MODEL | macros)).run
  program = run.program(devices)
  functional, _, mesh = run.functional(devices)
  ts, random = program.init(), np.random.RandomState(1)
  params = jax.tree.map(
    lambda x: jax.device_put(
      np.asarray(x) + 0.1 * random.randn(*x.shape).astype('f4'), x.sharding
    ),
    ts.params,
  )
  batch = program.put(folding_cases.batch(run, sizes=SIZES))
  ts, metrics = program.train_step(ts._replace(params=params), batch)

  def places(params, state, batch):
    s, pair, _ = functional.read(params, state, batch, None, False)
    return functional.fold(params, (s, pair, batch), None, None, False).atoms

  with jax.set_mesh(mesh):
    atoms = jax.jit(places)(ts.params, ts.state['model'], batch)
  assert metrics['dropped'][0].sum() > 0
  total, weight = metrics['loss']
  return float(total / weight), np.asarray(atoms)


@pytest.fixture(scope='module')
def alone():
  return trained(jax.devices()[:1], GROUP_SIZE=8)


@pytest.mark.parametrize('name', MESHES)
def test_a_step_and_a_fold_on_eight_devices_are_those_on_one(name, alone):
  loss, atoms = alone
  other_loss, others = trained(jax.devices()[:8], **MESHES[name])
  np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
  for row, size in enumerate(SIZES):
    # In Angstrom. Padding follows the last residue.
    np.testing.assert_allclose(others[row, :size], atoms[row, :size], atol=1e-4)
  assert np.abs(atoms).max() > 1
