"""Eight CPU devices and strict dtypes for every test."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Fast tests compile much and compute little; slow ones run as users do."""
  is_slow = item.get_closest_marker('slow') is not None
  jax.config.update('jax_disable_most_optimizations', not is_slow)


@pytest.fixture
def key():
  return jax.random.key(0)
