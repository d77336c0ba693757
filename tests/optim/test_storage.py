import jax.numpy as jnp
import pytest

from moe.optim import storage
from moe.optim.storage import Storage


@pytest.mark.parametrize(
  'argument, macro',
  [('params', 'PARAM_DTYPE'), ('grads', 'GRAD_DTYPE'), ('sums', 'SUM_DTYPE')],
)
def test_another_format_is_refused_by_the_name_of_its_macro(argument, macro):
  with pytest.raises(ValueError, match=f"{macro}='float16' must be one of"):
    Storage(**{argument: 'float16'})


def test_routers_norm_scales_and_biases_stay_float32_in_a_cast():
  tree = {
    'moe': {'router': jnp.ones(2), 'w_up_EDF': jnp.ones(2)},
    'norm': {'scale': jnp.ones(2)},
    'upscale': jnp.ones(2),
    'bias': jnp.ones(2),
  }
  low = storage.cast(tree, 'bfloat16')
  assert low['moe']['w_up_EDF'].dtype == low['upscale'].dtype == jnp.bfloat16
  kept = low['moe']['router'], low['norm']['scale'], low['bias']
  assert all(a.dtype == jnp.float32 for a in kept)
  back = storage.cast(low, 'float32')
  assert back['upscale'].dtype == jnp.float32
