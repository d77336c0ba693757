"""Eight CPU devices and strict dtypes for every test."""

import importlib.metadata
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most tests spend their time compiling; the older code generator of XLA takes
# half as long. An unknown flag would end the process: so other versions of jax
# do without, and child processes and the compiler of TPUs do not see it.
FLAG = '--xla_cpu_use_fusion_emitters=false'
IS_QUICK = 'XLA_FLAGS' not in os.environ and importlib.metadata.version(
  'jaxlib'
).startswith('0.10.')
if IS_QUICK:
  os.environ['XLA_FLAGS'] = FLAG

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
if IS_QUICK:
  jax.jit(lambda: 0)()  # reads the flags
  del os.environ['XLA_FLAGS']


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Most tests compile much and compute little."""
  is_optimized = item.get_closest_marker('optimized') is not None
  jax.config.update('jax_disable_most_optimizations', not is_optimized)


@pytest.fixture
def key():
  return jax.random.key(0)
