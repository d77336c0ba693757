"""A toy objective, which compiles fast, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe import axes
from moe.objectives import language
from moe.objectives.objective import Objective
from moe.optim import optimizers
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train.program import make_program
from moe.types import TokenBatch

# This token makes the loss of the toy NaN.
POISON = 15
_RATE = optax.constant_schedule(0.1)


def _toy_init(key, batch_shapes):
  del batch_shapes
  params = {'w': jax.random.normal(key, (16, 8))}
  return params, {'seen': jnp.zeros(())}, {'w': (axes.VOCAB, axes.EMBED)}


def _toy_loss(params, state, batch, key, train):
  """Sums weighted squares of sum(w[token]) - target / 8; a key adds noise."""
  error = params['w'].astype(jnp.float32)[batch.tokens].sum(-1)
  error -= batch.targets.astype(jnp.float32) / 8
  if key is not None:
    # Noise comes from the bits of the key, since a random draw compiles slowly.
    error += (jax.random.key_data(key)[0] % 1000).astype(jnp.float32) / 1e4
  error = jnp.where(batch.tokens == POISON, jnp.nan, error)
  sums = {'cross_entropy': jnp.sum(batch.loss_weights * jnp.square(error))}
  if train:
    state = {'seen': state['seen'] + batch.loss_weights.sum()}
  return sums, state, {'error': (error.sum(), batch.loss_weights.sum())}


def make_objective():
  """An objective for [8, 4] tokens; a table predicts a number per token."""
  return Objective(
    _toy_init,
    lambda: language.fields(8, 4),
    _toy_loss,
    lambda batch: {'cross_entropy': batch.loss_weights.sum()},
    {'cross_entropy': 1.0},
    language.BITS_PER_CHAR,
    unit='tokens',
    count=lambda batch: int(np.count_nonzero(batch.segment_ids)),
  )


def make_batch(seed, B=8, T=4, V=POISON):
  """A batch of numpy arrays without padding."""
  rng = np.random.RandomState(seed)
  zeros = np.zeros((B, T), np.int32)
  return TokenBatch(
    tokens=rng.randint(0, V, (B, T)).astype(np.int32),
    targets=rng.randint(0, V, (B, T)).astype(np.int32),
    loss_weights=np.ones((B, T), np.float32),
    segment_ids=zeros + 1,
    positions=zeros + np.arange(T, dtype=np.int32),
    block_ids=zeros,
    modality=zeros,
  )


def make_toy_program(objective, rate=_RATE, mesh=None, **options):
  """The program of AdamW; by default one device, and a learning rate of 0.1."""
  return make_program(
    objective,
    optimizers.build(optimizers.adamw(rate)),
    rate,
    rules.table('standard'),
    mesh or make_mesh(MeshShape(), jax.devices()[:1]),
    seed=0,
    **options,
  )
