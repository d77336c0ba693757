"""Our einsum and its gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.product import einsum


def outcome(product, subscripts, a, b):
  """((a weighted sum of the product, the product), gradients of the sum)."""

  def loss(a, b):
    y = product(subscripts, a, b)
    scale = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return jnp.sum(y * scale), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(a, b)


@pytest.mark.parametrize(
  'subscripts, first, second',
  [
    ('BTD,DF->BTF', (2, 3, 4), (4, 5)),
    ('ESD,EDF->ESF', (2, 3, 4), (2, 4, 5)),  # E is in all three arrays.
    ('BTNH,NHD->BTD', (2, 3, 4, 5), (4, 5, 6)),  # N and H are summed over.
    ('BTD,DNH->BTNH', (2, 3, 4), (4, 5, 6)),
    ('xy,xBIJ->yBIJ', (2, 3), (2, 4, 5, 6)),  # The weight comes first.
    ('BTD,D->BTD', (2, 3, 4), (4,)),  # One gradient sums over nothing.
    ('GMEC,GMD->EGCD', (2, 3, 4, 5), (2, 3, 6)),  # G and C are apart.
  ],
)
def test_value_and_gradients_are_those_of_autodiff(subscripts, first, second):
  random = np.random.RandomState(0)
  a, b = (random.randn(*shape).astype('f4') for shape in (first, second))
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-5, atol=1e-5
    ),
    outcome(einsum, subscripts, a, b),
    outcome(jnp.einsum, subscripts, a, b),
  )


def test_gradients_by_hand():
  # y = a b with a = (2, 3) and b = (5, 7), so y = 31, dy/da = b, dy/db = a.
  a, b = np.array([[2, 3]], 'f4'), np.array([[5], [7]], 'f4')
  product = lambda a, b: einsum('MD,DF->MF', a, b).sum()
  y, (da, db) = jax.value_and_grad(product, (0, 1))(a, b)
  assert float(y) == 31
  np.testing.assert_array_equal(da, [[5, 7]])
  np.testing.assert_array_equal(db, [[2], [3]])


def test_shape_and_dtype():
  a = jax.ShapeDtypeStruct((2, 3, 4), jnp.bfloat16)
  b = jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)
  (_, y), gradients = jax.eval_shape(
    lambda a, b: outcome(einsum, 'BTD,DF->BTF', a, b), a, b
  )
  assert y == jax.ShapeDtypeStruct((2, 3, 5), jnp.bfloat16)
  assert gradients == (a, b)


def test_the_products_of_gradients_have_the_given_precision():
  a, b = jnp.ones((2, 3)), jnp.ones((3, 4))
  loss = lambda a, b: einsum('MD,DF->MF', a, b, 'highest').sum()
  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(a, b)
  found = re.findall(r'dot_general\[.*?precision=(.*?)\n', str(jaxpr), re.S)
  assert len(found) == 3 and all('HIGHEST' in one for one in found)


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='what XLA:CPU makes of a product'
)
@pytest.mark.parametrize(
  'subscripts, first, second',
  [
    ('BTD,DF->BTF', (2, 8, 16), (16, 32)),
    ('BTNH,NHD->BTD', (2, 8, 4, 16), (4, 16, 32)),
    ('BTD,DNH->BTNH', (2, 8, 16), (16, 4, 32)),
    ('xy,xBIJ->yBIJ', (16, 32), (16, 2, 8, 8)),
  ],
)
def test_gradients_transpose_nothing(subscripts, first, second):
  a, b = jnp.ones(first), jnp.ones(second)
  weights = jnp.ones(einsum(subscripts, a, b).shape)
  loss = lambda a, b, w: jnp.sum(einsum(subscripts, a, b) * w)
  program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  compiled = program.lower(a, b, weights).compile()
  assert ' transpose(' not in compiled.as_text()


def test_a_letter_has_one_size():
  # N and H of the weight are exchanged; their product is the same.
  with pytest.raises(ValueError, match='one size'):
    einsum('BTNH,NHD->BTD', jnp.ones((2, 3, 4, 6)), jnp.ones((6, 4, 5)))
