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


def test_only_experts_that_a_token_uses_are_active():
  # The table has 10 * 4 = 40 parameters, routers 3 * 4 * 8 = 96 and experts
  # 3 * 8 * 4 * 5 = 480. Two of 8 experts are active: 120.
  assert cost.parameter_counts(PARAMS, LOGICAL, 2) == (616, 40 + 96 + 120)


def test_all_parameters_are_active_if_all_experts_are():
  total, active = cost.parameter_counts(PARAMS, LOGICAL, 8)
  assert total == active == 616


def test_flops_of_a_token_by_hand():
  # A token takes 2 * (256 - 40) = 432 FLOPs in products with parameters. It
  # sees 16 / 2 = 8 keys on average. Attention has two products of 2 FLOPs,
  # width 6 and 3 layers, so it takes 2 * 2 * 8 * 6 * 3 = 576.
  assert (
    cost.flops_per_token(
      active=256, embedding=40, attention_width=6, num_layers=3, length=16
    )
    == 432 + 576
  )


# The model has a dense and a sparse layer. A token takes 2 FLOPs per active
# parameter: 100 in attention, 40 in its output, 300 in the dense layer, 600 in
# the experts, and 20 in the head.
PARTS = {
  'attention': cost.ParameterCount(50, 50),
  'attention output': cost.ParameterCount(20, 20),
  'dense layers': cost.ParameterCount(150, 150),
  'experts': cost.ParameterCount(2400, 300),
  'embedding': cost.ParameterCount(10, 10),
}
# With these sizes, scores and values take 4 * 2 * 16 * 2 = 256 FLOPs per token.
SIZES = {'length': 16, 'attention_width': 2, 'num_layers': 2}
FORWARD = 100 + 40 + 300 + 600 + 256 + 20


def executed(policy='none', is_fused=False, ends_sparse=True, **sizes):
  recomputed = cost.recomputed_shares(policy, 1 / 3, is_fused, ends_sparse)
  execution = cost.Execution(**SIZES | sizes, recomputed=recomputed)
  return cost.executed_flops_per_token(PARTS, execution)


def test_without_remat_every_product_runs_three_times():
  assert executed() == (FORWARD, 3 * FORWARD)


def test_only_a_training_step_has_the_block_ahead_and_its_head():
  parts = PARTS | {cost.AHEAD: cost.ParameterCount(30, 0)}
  # The block has 30 parameters and the head 10. The block sees 16 / 2 = 8 keys
  # on average, with 2 products of 2 FLOPs and a width of 2.
  ahead = 2 * (30 + 10) + 2 * 2 * 8 * 2
  assert cost.ahead_flops_per_token(parts, 10, 2, 16) == ahead
  assert cost.ahead_flops_per_token(PARTS, 10, 2, 16) == 0
  plain = cost.Execution(**SIZES, recomputed={})
  assert cost.executed_flops_per_token(parts, plain) == (
    FORWARD,
    3 * FORWARD + 3 * ahead,
  )
  shares = cost.recomputed_shares('full', 1 / 3, False, True)
  again = cost.Execution(**SIZES, recomputed=shares)
  _, without = cost.executed_flops_per_token(PARTS, again)
  _, step = cost.executed_flops_per_token(parts, again)
  assert step == without + 4 * ahead


@pytest.mark.parametrize(
  'policy, is_fused, again',
  [
    # Everything but the head is computed again, except the last of the experts'
    # 3 products (600 / 3 = 200), since no gradient needs its result.
    ('full', False, 100 + 40 + 256 + 300 + 400),
    # Plain XLA computes the scores (128) again, but not the product with
    # values.
    ('attention', False, 100 + 40 + 128 + 300 + 400),
    ('attention', True, 100 + 40 + 300 + 400),
    # The residual stream after attention is kept, so 'attention output' is not
    # computed again.
    ('exchange', False, 100 + 256 + 300 + 400),
    ('attention_exchange', True, 100 + 300 + 400),
    # Products with parameters are kept, except those with an expert dim.
    ('dots', False, 256 + 400),
  ],
)
def test_a_remat_policy_recomputes_everything_it_does_not_keep(
  policy, is_fused, again
):
  _, step = executed(policy, is_fused)
  assert step == pytest.approx(3 * FORWARD + again)


def test_a_dense_layer_that_ends_a_period_recomputes_two_of_three_products():
  _, sparse = executed('full')
  _, dense = executed('full', ends_sparse=False)
  assert sparse - dense == pytest.approx(100)


def test_a_kernel_computes_fewer_scores_but_more_products():
  # The kernel computes 10 of 16 tiles. Its forward pass has 2 products, and its
  # backward pass has 7, where plain attention has 4.
  forward, step = executed(attention_share=10 / 16, attention_backward=3.5)
  rest = FORWARD - 256
  assert forward == rest + 160
  assert step == 3 * rest + 4.5 * 160


def test_empty_slots_are_multiplied_too():
  forward, _ = executed(padding=1.5)
  assert forward == FORWARD + 300
