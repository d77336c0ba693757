import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train.loss import cross_entropy, token_nats

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


def sharded_gradient(shape, num_chunks):
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

  def loss(w_VD, hidden, targets, weights):
    head = lambda h: h @ w_VD.T
    layout = rules.layout(table, mesh)
    return cross_entropy(head, hidden, targets, weights, num_chunks, layout)[0]

  with jax.set_mesh(mesh):
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    return gradient.lower(*arguments).compile(), arguments


@pytest.mark.parametrize(
  'shape',
  [
    MeshShape(data=2, fsdp=2, expert=2),
    MeshShape(data=2, context=2, model=2),
  ],
)
def test_chunks_over_devices_exchange_nothing_of_the_head_in_their_loop(shape):
  compiled, arguments = sharded_gradient(shape, 4)
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
  plain, _ = sharded_gradient(shape, 1)
  for got, wanted in zip(compiled(*arguments), plain(*arguments), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_chunks', [3, 0])
def test_chunks_that_do_not_divide_the_sequence_are_refused(inputs, num_chunks):
  with pytest.raises(ValueError, match=f'LOSS_CHUNKS={num_chunks}.*LENGTH=8'):
    losses(*inputs, num_chunks)
