"""Einsum whose gradients are einsums too."""

import functools

import jax
import jax.numpy as jnp

from moe.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(subscripts: str, a: Array, b: Array) -> Array:
  """`jnp.einsum` of two arrays, differentiated operand by operand.

  Automatic differentiation writes the gradient of the second operand as the
  transpose of a product. XLA:CPU turns that into transposed copies of both
  activations: a dense feed-forward layer took 1.6 times as long, forward and
  backward.

  Args:
    subscripts: 'first,second->result', each letter in two of them or more.
    a: first operand.
    b: second operand, of the same dtype.

  Returns:
    The product, in the dtype of the operands.
  """
  return jnp.einsum(subscripts, a, b)


def _einsum_fwd(subscripts, a, b):
  return jnp.einsum(subscripts, a, b), (a, b)


def _einsum_bwd(subscripts, operands, dy):
  a, b = operands
  inputs, result = subscripts.split('->')
  first, second = inputs.split(',')
  da = jnp.einsum(f'{result},{second}->{first}', dy, b)
  db = jnp.einsum(f'{first},{result}->{second}', a, dy)
  return da, db


einsum.defvjp(_einsum_fwd, _einsum_bwd)
