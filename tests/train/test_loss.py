import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train.loss import (
  ONE_DEVICE,
  Section,
  cross_entropy,
  cross_entropy_of_sections,
  token_nats,
)

B, T, D, V = 3, 8, 5, 11


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.RandomState(0)
  return (
    jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
    jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
    jnp.asarray(rng.randint(0, V, (B, T)), jnp.int32),
    jnp.asarray(rng.choice([0.0, 0.5, 1.0], (B, T)), jnp.float32),
  )


def losses(w, hidden, targets, weights, num_chunks):
  return cross_entropy(lambda h: h @ w, hidden, targets, weights, num_chunks)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
  nats, log_z = token_nats(jnp.zeros((2, V)), jnp.array([0, V - 1]))
  np.testing.assert_allclose(nats, [math.log(V)] * 2, rtol=1e-6)
  np.testing.assert_allclose(log_z, [math.log(V)] * 2, rtol=1e-6)


def test_nats_and_log_partition_of_two_logits_by_hand():
  # softmax(0, ln 3) = (1/4, 3/4), and the partition function is 4.
  logits = jnp.array([[0.0, math.log(3)], [0.0, math.log(3)]])
  nats, log_z = token_nats(logits, jnp.array([0, 1]))
  np.testing.assert_allclose(nats, [math.log(4), math.log(4 / 3)], rtol=1e-6)
  np.testing.assert_allclose(log_z, [math.log(4)] * 2, rtol=1e-6)


def test_sums_are_weighted():
  # Two tokens cost ln 2 nats each, with weights 3 and 0.5. The third has weight
  # 0.
  hidden = jnp.zeros((1, 3, D))
  nats, squares = losses(
    jnp.zeros((D, 2)),
    hidden,
    jnp.zeros((1, 3), jnp.int32),
    jnp.array([[3.0, 0.5, 0.0]]),
    1,
  )
  assert float(nats) == pytest.approx(3.5 * math.log(2))
  assert float(squares) == pytest.approx(3.5 * math.log(2) ** 2)


@pytest.mark.parametrize('num_chunks', [2, 4, 8])
def test_chunks_change_neither_loss_nor_gradient(inputs, num_chunks):
  w, hidden, targets, weights = inputs

  def total(w, hidden, n):
    nats, squares = losses(w, hidden, targets, weights, n)
    return nats + 0.1 * squares, (nats, squares)

  gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
  gradient = jax.jit(gradient, static_argnums=2)
  for got, wanted in zip(
    jax.tree.leaves(gradient(w, hidden, num_chunks)),
    jax.tree.leaves(gradient(w, hidden, 1)),
    strict=True,
  ):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


# The ids of a first range, and those of a second range behind a padding id.
FIRST, SECOND = np.arange(7), np.arange(8, V)


def sections(w, count=lambda name: None):
  """Two sections of the head `w`; `count` is called when one has logits."""

  def section(name, ids):
    own = w[:, ids]

    def head(hidden):
      count(name)
      return hidden @ own

    return Section(head, int(ids[0]))

  return [section('first', FIRST), section('second', SECOND)]


def two_ranges(inputs):
  """Targets without the padding id, and weights with a column per range."""
  _, _, targets, weights = inputs
  targets = jnp.where(targets == 7, 8, targets)
  columns = jnp.stack([weights, jnp.where(targets < 8, weights, 0)], axis=-1)
  return targets, columns


@pytest.mark.parametrize('num_chunks', [1, 2, 8])
def test_ranges_compete_among_themselves_in_all_chunks(inputs, num_chunks):
  w, hidden, _, _ = inputs
  targets, weights = two_ranges(inputs)

  def total(w, hidden):
    sums = cross_entropy_of_sections(
      sections(w), hidden, targets, weights, num_chunks
    )
    return sums[0][0] + 0.1 * sums[1].sum(), sums

  def masked(w, hidden):
    ids = jnp.arange(V)
    competes = ((ids < 7) == (targets < 8)[..., None]) & (ids != 7)
    nats, log_z = token_nats(jnp.where(competes, hidden @ w, -1e9), targets)
    sums = [(a[..., None] * weights).sum((0, 1)) for a in (nats, log_z**2)]
    return sums[0][0] + 0.1 * sums[1].sum(), tuple(sums)

  found, wanted = (
    jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(w, hidden)
    for f in (total, masked)
  )
  for got, expected in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_chunk_computes_the_logits_of_its_own_ranges_alone(inputs):
  w, hidden, _, _ = inputs
  # Of 24 tokens, 6 have targets of the first range and 12 of the second, and 6
  # have the weight 0. In chunks of 6, that is 1 chunk and 2 chunks.
  order = np.random.RandomState(0).permutation(B * T).reshape(B, T)
  targets = jnp.where(order < 6, 3, 9)
  weights = (order < 18).astype(jnp.float32)
  counted = []
  count = lambda name: jax.debug.callback(lambda: counted.append(name))
  loss = lambda w: cross_entropy_of_sections(
    sections(w, count), hidden, targets, weights, 4
  )
  jax.block_until_ready(jax.jit(loss)(w))
  jax.effects_barrier()
  assert sorted(counted) == ['first', 'second', 'second']


def largest(jaxpr):
  """Size of the largest array that a program makes."""
  sizes = [0]
  for equation in jaxpr.eqns:
    sizes += [v.aval.size for v in equation.outvars]
    for inner in core.jaxprs_in_params(equation.params):
      sizes.append(largest(inner))
  return max(sizes)


def test_logits_of_more_than_a_chunk_never_exist(inputs):
  _, hidden, targets, weights = inputs
  w = jnp.zeros((D, 1000))

  def program(num_chunks):
    def total(w, hidden):
      return losses(w, hidden, targets, weights, num_chunks)[0]

    return jax.make_jaxpr(jax.grad(total, (0, 1)))(w, hidden).jaxpr

  assert largest(program(1)) == B * T * 1000
  assert largest(program(8)) == max(B * 1000, D * 1000)


def loss_of_head(num_chunks, num_first, layout=ONE_DEVICE):
  """The loss as a function of head, hidden states, targets and weights.

  If `num_first` is not 0, the ids below it have a softmax of their own.
  """

  def loss(w_VD, hidden, targets, weights):
    head = lambda w: lambda h: h @ w.T
    score, heads = cross_entropy, head(w_VD)
    if num_first:
      score = cross_entropy_of_sections
      heads = [
        Section(head(w_VD[:num_first]), 0),
        Section(head(w_VD[num_first:]), num_first),
      ]
    return score(heads, hidden, targets, weights, num_chunks, layout)[0]

  return loss


def sharded_gradient(shape, num_chunks, num_first):
  """(compiled function, its arguments on the mesh).

  The function computes the gradients for the head [V, D] and for hidden states.
  """
  mesh = make_mesh(shape)
  table = rules.table('standard')
  rng = np.random.RandomState(0)
  place = lambda a, *names: jax.device_put(
    a, jax.NamedSharding(mesh, jax.P(*(table[n] for n in names)))
  )
  arguments = (
    place(rng.normal(size=(32, 8)).astype('f4'), 'vocab', 'embed'),
    place(rng.normal(size=(8, 16, 8)).astype('f4'), 'batch', 'length'),
    place(rng.randint(0, 32, (8, 16)).astype('i4'), 'batch', 'length'),
    place(rng.choice([0.0, 1.0], (8, 16)).astype('f4'), 'batch', 'length'),
  )

  loss = loss_of_head(num_chunks, num_first, rules.layout(table, mesh))
  with jax.set_mesh(mesh):
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    return gradient.lower(*arguments).compile(), arguments


MESHES = [
  MeshShape(data=2, fsdp=2, expert=2),
  MeshShape(data=2, context=2, model=2),
]


@pytest.mark.parametrize('num_first', [0, 24])
@pytest.mark.parametrize('shape', MESHES)
def test_chunks_over_devices_exchange_nothing_of_the_head_in_their_loop(
  shape, num_first
):
  compiled, arguments = sharded_gradient(shape, 4, num_first)
  on_mesh = compiled(*arguments)
  inside, name = [], ''
  for line in compiled.as_text().splitlines():
    if line.endswith('{') and not line.startswith(' '):
      name = line
    found = re.search(
      r'= \w+\[([\d,]*)\]\S* (all-|collective-|reduce-scatter)', line
    )
    if found and not name.startswith('ENTRY'):
      inside.append(math.prod(int(n) for n in found.group(1).split(',') if n))
  # If the model axis divides the vocabulary, the loop may contain sums over its
  # parts. They are of hidden states: 4 rows of 2 tokens with D = 8.
  most = 4 * 2 * 8 if shape.model > 1 else 0
  assert max(inside, default=0) <= most
  plain = jax.jit(jax.grad(loss_of_head(1, num_first), (0, 1)))
  arguments = [np.asarray(a) for a in arguments]
  for got, wanted in zip(on_mesh, plain(*arguments), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_chunks', [3, 0])
def test_chunks_that_do_not_divide_the_sequence_are_refused(inputs, num_chunks):
  with pytest.raises(ValueError, match=f'LOSS_CHUNKS={num_chunks}.*LENGTH=8'):
    losses(*inputs, num_chunks)
