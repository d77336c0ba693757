"""A model describes its own layers and sizes."""

import functools

import pytest

from moe.layers.latent_attention import LatentAttention
from moe.layers.soft_moe import SoftMoE
from moe.models.anatomy import anatomy
from moe.routing import dispatch, exchange
from tests.models import factories

P = functools.partial


def of(block=None, **stack):
  return anatomy(
    factories.make_decoder(factories.make_block(**block or {}), **stack)
  )


def test_a_model_is_a_prefix_and_periods_that_end_with_experts():
  made = of(num_layers=5, moe_every=2, num_dense_prefix=1, remat='full')
  assert [layer.experts is not None for layer in made.layers] == [
    *(False, False, True, False, True)
  ]
  assert (len(made.prefix), len(made.period), made.num_periods) == (1, 2, 2)
  assert (made.num_sparse, made.remat) == (2, 'full')
  assert made.layers[1].feed_forward.width == factories.WIDTH
  assert (made.d_model, made.vocab_size) == (16, 12)


def test_experts_are_described_with_what_they_cost():
  experts = of(dict(moe=dict(shared_d_ff=6))).experts
  assert (experts.num_experts, experts.num_active) == (4, 2)
  assert (experts.expert.width, experts.shared_width) == (10, 6)
  assert (experts.expert.num_matrices, experts.group_size) == (3, 4)
  # Two experts of width 10 and the shared expert of width 6 process each token.
  assert experts.dense_twin().width == 2 * 10 + 6


@pytest.mark.parametrize(
  'dispatcher, exchanger, capacity, buffer_factor',
  [
    # With capacity factor 1.25, 4 tokens, top 2 and 4 experts, an expert has
    # 1.25 * 4 * 2 / 4 = 2.5 slots, rounded up to 3.
    (dispatch.Sorted, exchange.AllToAll, 3, None),
    (dispatch.Dropless, P(exchange.Ragged, 1.5), None, 1.5),
    (dispatch.Dropless, exchange.AllGather, None, None),
  ],
)
def test_the_bounds_on_rows_are_described(
  dispatcher, exchanger, capacity, buffer_factor
):
  moe = dict(dispatch=dispatcher, exchange=exchanger)
  experts = of(dict(moe=moe)).experts
  assert experts.dispatch.capacity(4, 2, 4) == capacity
  assert experts.buffer_factor == buffer_factor


@pytest.mark.parametrize(
  'options', [(dict(dense_twin=True), {}), ({}, dict(moe_every=0))]
)
def test_a_model_without_experts_says_so(options):
  block, stack = options
  made = of(block, **stack)
  assert made.experts is None
  assert made.num_active == made.num_sparse == 0
  assert all(layer.feed_forward for layer in made.layers)


def test_a_dense_twin_is_as_wide_as_what_a_token_sees():
  made = of(dict(dense_twin=True), moe_every=2)
  widths = [layer.feed_forward.width for layer in made.period]
  assert widths == [factories.WIDTH, 2 * factories.EXPERT_D_FF]


def test_a_layer_that_mixes_sends_nothing():
  sparse = P(SoftMoE, num_experts=4, expert_d_ff=10)
  block = P(factories.make_block(), moe=sparse)
  experts = anatomy(factories.make_decoder(block)).experts
  assert experts.dispatch is experts.buffer_factor is None
  assert experts.num_active == 2 and not experts.router.is_causal


def test_key_and_value_heads_are_counted_with_those_of_queries():
  # Heads have width 8. There are 4 query heads, 4 output heads, 2 key heads and
  # 2 value heads.
  attention = of().attention
  assert attention.features == (4 + 4 + 2 + 2) * 8
  assert (attention.pair_width, attention.result_features) == (32, 32)


def test_latent_attention_has_heads_of_three_widths():
  latent = P(
    LatentAttention, num_heads=2, query_rank=9, kv_rank=9, content_dim=8,
    rope_dim=4, value_dim=6,
  )  # fmt: skip
  block = P(factories.make_block(), attention=latent)
  attention = anatomy(factories.make_decoder(block)).attention
  # In each of 2 heads, a query and a key have 12 features each, a value and an
  # output 6 each. Per pair of tokens, the score takes 12 multiplications, and
  # the product of score and value takes 6.
  assert attention.features == 2 * (12 + 12 + 6 + 6)
  assert attention.pair_width == 2 * (12 + 6) // 2
  assert (attention.result_features, attention.num_kv_heads) == (12, 2)


def test_a_layer_that_is_not_used_is_not_checked():
  unused = dict(num_experts=0, expert_d_ff=0)
  assert of(dict(moe=unused), moe_every=0).experts is None


def test_more_experts_than_there_are_is_refused():
  with pytest.raises(ValueError, match='TOP_K=5 must be at most the 4 experts'):
    of(dict(moe=dict(top_k=5)))
