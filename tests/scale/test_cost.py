import jax
import jax.numpy as jnp

from moe import axes
from moe.scale import cost


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


PARAMS = {
  'table': shape(10, 4),
  'router': shape(3, 4, 8),
  'w_up': shape(3, 8, 4, 5),
}
LOGICAL = {
  'table': (axes.VOCAB, axes.EMBED),
  'router': (axes.LAYERS, axes.EMBED, None),
  'w_up': (axes.LAYERS, axes.EXPERT, axes.EMBED, axes.EXPERT_MLP),
}


def test_of_the_experts_those_that_a_token_sees_are_active():
  # table 10 * 4 = 40, routers 3 * 4 * 8 = 96, experts 3 * 8 * 4 * 5 = 480, of
  # which 2 of 8 are active: 120.
  assert cost.parameter_counts(PARAMS, LOGICAL, 2) == (616, 40 + 96 + 120)


def test_with_all_experts_active_all_parameters_are():
  total, active = cost.parameter_counts(PARAMS, LOGICAL, 8)
  assert total == active == 616


def test_flops_of_a_token_by_hand():
  # Products: 2 * (256 - 40) = 432. Attention: 16 / 2 keys on average, two
  # products of 2 FLOPs, width 6, 3 layers: 2 * 2 * 8 * 6 * 3 = 576.
  assert (
    cost.flops_per_token(
      active=256, embedding=40, attention_width=6, num_layers=3, length=16
    )
    == 432 + 576
  )
