"""Programs of a tiny sparse model on a mesh, for the tests of this folder."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from moe.models.functional import Functional, make_functional
from moe.objectives import language
from moe.optim import optimizers
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train.program import make_program
from tests.models import factories

LENGTH = 8  # Tokens of a row.
ONE = MeshShape(data=1)
EIGHT = MeshShape(data=2, expert=4)
TABLE = rules.table('standard')
# An objective for tests of logs; its model is never traced.
LANGUAGE = language.language_model(
  Functional(factories.make_decoder()), (32, LENGTH)
)
SGD = optimizers.build(optax.sgd(1.0), clip_norm=0)


def make(moe, shape, num_microbatches=1, optimizer=SGD, **losses):
  """A program for batches of 32 rows.

  Args:
    moe: options of the sparse layer; a routing group is a row by default.
    shape: sizes of the mesh axes.
    num_microbatches: number of parts of a batch.
    optimizer: by default gradient descent with the learning rate 1.
    **losses: coefficients, see `language.language_model`.
  """
  moe = {'group_size': LENGTH, **moe}
  block = factories.make_block()
  layer = functools.partial(block.keywords['moe'], **moe)
  mesh = make_mesh(shape, jax.devices()[: shape.data * shape.expert])
  functional = make_functional(
    factories.make_decoder(functools.partial(block, moe=layer), num_layers=2),
    rules.activation_rules(TABLE),
    rules.layout(TABLE, mesh),
  )
  return make_program(
    dataclasses.replace(
      language.language_model(functional, (32, LENGTH), **losses),
      rows_together=max(1, moe['group_size'] // LENGTH),
    ),
    optimizer,
    lambda step: 1.0,
    TABLE,
    mesh,
    seed=0,
    num_microbatches=num_microbatches,
  )


def start(program):
  """An initial state with random parameters that are the same on every mesh."""
  # NumPy makes the parameters, since the model's initialisation compiles
  # slowly.
  random = np.random.RandomState(1)

  def fill(shape, draw):
    a = draw(shape.shape).astype(shape.dtype)
    return jax.device_put(a, shape.sharding)

  ts = jax.tree.map(lambda s: fill(s, np.zeros), program.abstract)
  params = jax.tree.map(
    lambda s: fill(s, lambda n: random.uniform(-0.6, 0.6, n)),
    program.abstract.params,
  )
  return ts._replace(params=params)


def make_batch(seed=0):
  """A batch of 32 rows, some of them with padding."""
  lengths = np.random.RandomState(seed).randint(1, 2 * LENGTH, (32, 1))
  segments = (np.arange(LENGTH) < lengths).astype(np.int32)
  return factories.make_batch(segments, seed)


def train(program, ts=None, steps=1):
  """(state, metrics of the last step on the host) after `steps` steps."""
  ts = start(program) if ts is None else ts
  for i in range(int(ts.step), int(ts.step) + steps):
    ts, metrics = program.train_step(ts, program.put(make_batch(i)))
  return ts, jax.device_get(metrics)
