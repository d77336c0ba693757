"""Grouped products: values, gradients, and the program of each platform."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import grouped
from moe.routing.grouped import grouped_matmul

E, D, F = 4, 5, 3
# Name -> (number of rows of each run, R). Rows behind the last run belong to no
# run.
CASES = {
  'uneven': ([7, 0, 12, 3], 24),
  'all to one': ([0, 24, 0, 0], 24),
  'all to the last': ([0, 0, 0, 24], 24),
  'one row each': ([1, 1, 1, 1], 24),
  'few rows': ([1, 0, 1, 1], 3),
  'none': ([0, 0, 0, 0], 8),
  'many blocks': ([70, 1, 0, 57], 130),
}


def with_gradients(product, used):
  scale = np.random.RandomState(1).randn(used, F).astype(np.float32)

  def scaled(x_RD, w_EDF):
    y_RF = product(x_RD, w_EDF)[:used]
    return jnp.sum(y_RF * scale), y_RF

  return jax.jit(jax.value_and_grad(scaled, (0, 1), has_aux=True))


@pytest.mark.parametrize('case', CASES)
def test_it_equals_the_obvious_loop(case):
  counts, rows = CASES[case]
  used = sum(counts)
  random = np.random.RandomState(0)
  x_RD = random.randn(rows, D).astype(np.float32)
  x_RD[used:] = 0
  w_EDF = random.randn(E, D, F).astype(np.float32)

  def loop(x_RD, w_EDF):
    ends = np.cumsum(counts)
    runs = [x_RD[end - n : end] for end, n in zip(ends, counts, strict=True)]
    return jnp.concatenate([run_RD @ w_EDF[e] for e, run_RD in enumerate(runs)])

  def grouped(x_RD, w_EDF):
    return grouped_matmul(x_RD, w_EDF, jnp.asarray(counts, jnp.int32))

  mine, its = (with_gradients(f, used)(x_RD, w_EDF) for f in (grouped, loop))
  for one, other in zip(
    jax.tree.leaves(mine), jax.tree.leaves(its), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_of_matrices_are_added_up_in_float32():
  # The gradient is a sum of 4096 ones. A bfloat16 sum would stop at 256.
  x_RD = jnp.ones((4096, 1), jnp.bfloat16)
  w_EDF = jnp.ones((1, 1, 1), jnp.bfloat16)
  counts = jnp.array([4096], jnp.int32)
  loss = lambda w: grouped_matmul(x_RD, w, counts).astype(jnp.float32).sum()
  assert float(jax.jit(jax.grad(loss))(w_EDF)[0, 0, 0]) == 4096


def lowered(platform, dtype=jnp.float32):
  """Lowers a grouped product with its gradients; returns the program's text."""

  def loss(x_RD, w_EDF, count_E):
    return grouped_matmul(x_RD, w_EDF, count_E).sum()

  shapes = [
    jax.ShapeDtypeStruct((24, D), dtype),
    jax.ShapeDtypeStruct((E, D, F), dtype),
    jax.ShapeDtypeStruct((E,), jnp.int32),
  ]
  traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*shapes)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_program_for_a_tpu_has_its_kernels_though_made_on_a_cpu():
  assert jax.default_backend() == 'cpu'
  program = lowered('tpu')
  assert program.count('chlo.ragged_dot"') == 3
  assert 'stablehlo.while' not in program


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_the_program_for_nvidia_has_its_kernels_though_made_on_a_cpu(dtype):
  if sys.version_info >= (3, 12):
    pytest.skip('tokamax for Python 3.12 lowers only where it finds a GPU')
  tokamax = pytest.importorskip(
    'tokamax', reason='the kernels of NVIDIA come with the [cuda] extra'
  )
  with tokamax.config.cross_compile(True):
    program = lowered('cuda', dtype)
  assert program.count('custom_call @__gpu$xla.gpu.triton') == 3
  for other in ('stablehlo.while', 'stablehlo.dot_general', 'chlo.ragged_dot'):
    assert other not in program
  # A program with arrays of this shape would multiply every row by every
  # matrix.
  assert f'tensor<{E}x24x' not in program


def test_the_program_for_a_cpu_has_its_own():
  program = lowered('cpu')
  assert 'ragged_dot' not in program
  assert 'stablehlo.while' in program


def test_without_kernels_for_nvidia_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokamax', None)  # makes its import fail
  with pytest.raises(ValueError, match='need the package tokamax'):
    lowered('cuda')


def kernels(monkeypatch, ragged_dot_general):
  """Replaces tokamax, since its kernels do not run on CPUs."""
  fake = types.SimpleNamespace(ragged_dot_general=ragged_dot_general)
  monkeypatch.setitem(sys.modules, 'tokamax', fake)


def test_where_no_kernel_for_nvidia_fits_it_says_why(monkeypatch):
  def refuse(*args, implementation):
    raise NotImplementedError(f'{implementation} says no')

  kernels(monkeypatch, refuse)
  with pytest.raises(ValueError, match='triton says no; mosaic_gpu: widths'):
    lowered('cuda')


@pytest.mark.parametrize('kind', ['forward', 'rows', 'matrices'])
def test_what_kernels_for_nvidia_leave_undefined_is_zero(monkeypatch, kind):
  kernels(
    monkeypatch,
    lambda a, b, count_E, dims, implementation: jnp.full(
      (E, 2, 2) if kind == 'matrices' else (8, 2), jnp.nan
    ),
  )
  count_E = jnp.array([2, 0, 3, 0], jnp.int32)
  w = jnp.ones((8, 2) if kind == 'matrices' else (E, 2, 2))
  out = grouped._on_cuda(jnp.ones((8, 2)), w, count_E, kind=kind)
  is_zero = jnp.all(out.reshape(len(out), -1) == 0, axis=1).tolist()
  if kind == 'matrices':
    assert is_zero == [False, True, False, True]
  else:
    assert is_zero == [False] * 5 + [True] * 3


def test_kernels_for_nvidia_do_not_see_the_flags_of_the_program(monkeypatch):
  seen = []

  def ragged_dot_general(a, b, count_E, dims, implementation):
    seen.extend(sys.argv)
    return jnp.zeros((8, 2))

  kernels(monkeypatch, ragged_dot_general)
  monkeypatch.setattr(sys, 'argv', ['train', '--gin_file=a.gin'])
  ones = jnp.ones((8, 2)), jnp.ones((E, 2, 2)), jnp.ones(E, jnp.int32)
  grouped._on_cuda(*ones, kind='forward')
  assert seen == ['train']
  assert sys.argv == ['train', '--gin_file=a.gin']
