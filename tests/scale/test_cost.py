import jax
import jax.numpy as jnp
import pytest

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


# One sparse layer after one dense one: products of 100 in attention, 40 in its
# output, 300 in the dense layer, 600 in the experts, all FLOPs of a token.
PARTS = {
  'attention': cost.Counted(50, 50),
  'attention output': cost.Counted(20, 20),
  'dense layers': cost.Counted(150, 150),
  'experts': cost.Counted(2400, 300),
  'embedding': cost.Counted(10, 10),
}
# 4 * 2 * 16 * 2 = 256 for scores and values, 20 for the head.
SIZES = {'length': 16, 'attention_width': 2, 'num_layers': 2}
FORWARD = 100 + 40 + 300 + 600 + 256 + 20


def executed(policy='none', is_fused=False, ends_sparse=True, **sizes):
  redone = cost.redone(policy, 1 / 3, is_fused, ends_sparse)
  recipe = cost.Recipe(**SIZES | sizes, redone=redone)
  return cost.executed_flops_per_token(PARTS, recipe)


def test_without_remat_every_product_runs_three_times():
  assert executed() == (FORWARD, 3 * FORWARD)


@pytest.mark.parametrize(
  'policy, is_fused, again',
  [
    # All but the last product of the experts: it makes the output alone.
    ('full', False, 100 + 40 + 256 + 300 + 400),
    # Scores, for the probabilities, but not the product with values.
    ('attention', False, 100 + 40 + 128 + 300 + 400),
    ('attention', True, 100 + 40 + 300 + 400),
    # The sum after attention is kept, and so needs no product again.
    ('exchange', False, 100 + 256 + 300 + 400),
    ('attention_exchange', True, 100 + 300 + 400),
    # Products with parameters are kept, but those that have an expert dim.
    ('dots', False, 256 + 400),
  ],
)
def test_a_remat_policy_does_again_what_it_does_not_keep(
  policy, is_fused, again
):
  _, step = executed(policy, is_fused)
  assert step == pytest.approx(3 * FORWARD + again)


def test_a_dense_layer_that_ends_a_period_does_two_of_three_products_again():
  _, sparse = executed('full')
  _, dense = executed('full', ends_sparse=False)
  assert sparse - dense == pytest.approx(100)


def test_a_kernel_makes_fewer_scores_and_more_products_of_them():
  # 10 of 16 tiles; forward 2 products, backward 7 and not 4.
  forward, step = executed(attention_share=10 / 16, attention_backward=3.5)
  rest = FORWARD - 256
  assert forward == rest + 160
  assert step == 3 * rest + 4.5 * 160


def test_empty_slots_are_multiplied_too():
  forward, _ = executed(padding=1.5)
  assert forward == FORWARD + 300
