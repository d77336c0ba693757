"""Converts sizes from and to Hugging Face's config.json."""

import functools

import jax
import numpy as np
import pytest

from moe.checkpoint import restore
from moe.layers.attention import Attention
from moe.layers.feed_forward import FeedForward
from moe.layers.latent_attention import LatentAttention
from moe.layers.moe_layer import MoE
from moe.layers.position import Rope
from moe.layers.soft_moe import SoftMoE
from moe.models import hugging_face
from moe.models.block import Block
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.models.hugging_face_import import from_config
from moe.models.parametrisation import CompleteP
from moe.models.stack import Stack
from moe.parallel.shardings import path_name
from moe.routing import gates
from tests.models import factories

partial = functools.partial


def model(attention=None, moe=None, block=None, stack=None, **decoder):
  """A sparse decoder without QK norms, with options for each part."""
  attention = attention or {}
  latent = attention.pop('latent', None)
  make_attention = (
    partial(LatentAttention, **latent)
    if latent
    else partial(
      Attention,
      **{'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 8}
      | {'use_qk_norm': False}
      | attention,
    )
  )
  moe = moe or {}
  make_moe = partial(
    moe.pop('layer', MoE), **{'num_experts': 4, 'expert_d_ff': 12} | moe
  )
  make_block = partial(
    Block,
    **{
      'attention': make_attention,
      'feed_forward': partial(FeedForward, width=24),
      'moe': make_moe,
    }
    | (block or {}),
  )
  make_stack = partial(
    Stack, **{'block': make_block, 'num_layers': 4} | (stack or {})
  )
  return Decoder(make_stack, vocab_size=40, d_model=16, **decoder)


LATENT = {
  'num_heads': 4,
  'query_rank': 10,
  'kv_rank': 6,
  'content_dim': 8,
  'rope_dim': 4,
  'value_dim': 6,
}
SIGMOID = {'router': gates.Sigmoid, 'shared_d_ff': 24}
MODELS = {
  'llama': lambda: model(stack={'moe_every': 0}),
  'qwen3': lambda: model({'use_qk_norm': True}, block={'dense_twin': True}),
  'mixtral': lambda: model({'rope': Rope(1e6)}, tie_embeddings=False),
  'qwen3_moe': lambda: model(
    {'use_qk_norm': True},
    stack={'moe_every': 2, 'num_dense_prefix': 2, 'num_layers': 6},
  ),
  'glm4_moe': lambda: model({'rope': Rope(share=0.5)}, SIGMOID),
  'deepseek_v2': lambda: model(
    {'latent': LATENT | {'query_rank': 0}},
    {'shared_d_ff': 24, 'num_experts': 8, 'router': partial(
      gates.TopK, renormalize=False, num_groups=4, top_groups=2, scaling=16.0)},
  ),
  'deepseek_v3': lambda: model(
    {'latent': LATENT | {'rope': Rope(scaling='yarn', factor=4.0,
     original_length=16, mscale=1.0, mscale_all_dim=0.5)}},
    SIGMOID | {'router': partial(gates.Sigmoid, num_groups=2, scaling=2.5)},
    stack={'num_dense_prefix': 1},
  ),
}  # fmt: skip


@pytest.mark.parametrize('kind', MODELS)
def test_what_is_said_is_understood(kind):
  made = MODELS[kind]()
  config = hugging_face.to_config(made, 64, 'float32')
  assert config['model_type'] == kind
  imported = from_config(config)
  assert imported.length == 64
  assert imported.bindings['EMBEDDING_SCALE'] == 1.0
  found = hugging_face.sizes(made)
  # Some bindings have no counterpart in `sizes`. An imported dense model has
  # sizes of experts, and Mixtral has a D_FF, only because the gin file needs
  # them.
  for macro, value in imported.bindings.items():
    if macro in found and (macro, kind) != ('D_FF', 'mixtral'):
      assert value == found[macro], macro


@pytest.mark.parametrize(
  ('made', 'message'),
  [
    (lambda: model(moe={'router': gates.ExpertChoice}), 'ExpertChoice is not'),
    (
      lambda: model(moe={'router': partial(gates.NullExperts, num_null=2)}),
      'NullExperts is not supported',
    ),
    (lambda: model(moe={'router': gates.Quantile}), 'Quantile is not'),
    (
      lambda: model(extra_tables=(('row', 3),)),
      r"Decoder.extra_tables=\(\('row', 3\),\) is not supported",
    ),
    (lambda: model(moe={'layer': SoftMoE}), 'SoftMoE is not supported'),
    (lambda: model(moe={'activation': 'gelu'}), 'ACTIVATION=gelu is not'),
    (lambda: model(moe={'shared_d_ff': 12}), 'SHARED_D_FF=12 is not supported'),
    (
      lambda: model(moe=SIGMOID | {'shared_d_ff': 13}),
      'SHARED_D_FF=13 is not supported by the format glm4_moe',
    ),
    (
      lambda: model(moe=SIGMOID, stack={'moe_every': 2}),
      'MOE_EVERY=2 is not supported',
    ),
    (lambda: model(stack={'moe_every': 2}), 'MOE_EVERY=2 is not supported'),
    (
      lambda: model(moe={'router': partial(gates.TopK, scaling=2.0)}),
      'gates.TopK.scaling=2.0 is not supported by the format mixtral',
    ),
    (lambda: model({'latent': LATENT}), 'gates.TopK.renormalize=True is not'),
    (lambda: model({'longest_block': 9}), 'LONGEST_BLOCK=9 is not supported'),
    (lambda: model(norm_epsilon=1e-5), 'NORM_EPSILON must be the same'),
    (
      lambda: model(
        moe={'router': partial(gates.TopK, renormalize=False)}
      ),
      'gates.TopK.renormalize=False is not supported by the format mixtral',
    ),
  ],
)  # fmt: skip
def test_what_a_format_cannot_say_is_refused_by_name(made, message):
  with pytest.raises(ValueError, match=message):
    hugging_face.to_config(made(), 64, 'float32')


@pytest.mark.parametrize(
  ('kind', 'change', 'message'),
  [
    ('llama', {'model_type': 'gpt2'}, "model_type='gpt2' must be one of"),
    ('llama', {'hidden_act': 'gelu'}, "hidden_act='gelu' is not supported"),
    ('llama', {'attention_bias': True}, 'attention_bias=True is not supported'),
    ('llama', {'logit_scale': 2.0}, 'logit_scale=2.0 is an unknown field'),
    ('llama', {'hidden_size': 'a'}, "hidden_size='a' must be a number"),
    ('llama', {'vocab_size': None}, 'vocab_size must be in config.json'),
    ('llama', {'rope_scaling': {'type': 'longrope'}}, "rope_type='longrope'"),
    (
      'mixtral',
      {'sliding_window': 4096},
      'sliding_window=4096 is not supported',
    ),
    ('qwen3_moe', {'mlp_only_layers': [1, 2]}, 'is not supported here'),
    ('qwen3', {'layer_types': ['sliding_attention']}, 'layer_types with'),
    (
      'glm4_moe',
      {'norm_topk_prob': False},
      'norm_topk_prob=False is not supported',
    ),
    ('deepseek_v3', {'topk_method': 'greedy'}, "topk_method='greedy' is not"),
    ('deepseek_v2', {'topk_method': 'noaux_tc'}, "topk_method='noaux_tc' is"),
    ('deepseek_v2', {'norm_topk_prob': True}, 'norm_topk_prob=True is not'),
    (
      'deepseek_v3',
      {'quantization_config': {'quant_method': 'fp8'}},
      'quantization_config=.* is not supported',
    ),
  ],
)
def test_what_we_cannot_say_is_refused_by_its_field(kind, change, message):
  config = hugging_face.to_config(MODELS[kind](), 64, 'float32')
  with pytest.raises(ValueError, match=message):
    from_config(config | change)


def test_the_scale_of_a_tied_table_goes_into_the_last_norm():
  # The exported table is multiplied by sqrt(16) = 4. It is also the output
  # head, so the last norm is divided by 4.
  factors = {'embedding/table': 4.0, 'last_norm/scale': 0.25}
  assert hugging_face.fold(model(), []) == factors


@pytest.mark.parametrize('moe', [{}, {'moe_every': 0}])
def test_the_scales_of_a_parametrisation_go_into_parameters(moe):
  scaled = factories.make_decoder(
    decoder={'parametrisation': CompleteP(base_width=4, base_depth=1)}, **moe
  )
  plain = factories.make_decoder(decoder={'embedding_scale': 1.0}, **moe)
  batch = factories.make_batch([[1] * 8])
  params = factories.make_params(scaled, batch)
  leaves = restore.leaves(params)
  # The width is 4 times the base, and there are twice as many layers.
  factors = hugging_face.fold(scaled, leaves)
  assert factors['last_norm/scale'] == pytest.approx(0.25 * 0.5)
  assert set(factors.values()) == {4.0, 0.125, 0.5}
  folded = jax.tree_util.tree_map_with_path(
    lambda path, x: x * factors.get(path_name(path), 1.0), params
  )
  logits = []
  for module, values in ((scaled, params), (plain, folded)):
    functional = Functional(module)
    outputs = functional.apply(values, {}, batch, None, False)
    logits.append(functional.head(values, outputs.hidden))
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', MODELS)
def test_no_value_of_a_field_ends_in_another_error(kind):
  config = hugging_face.to_config(MODELS[kind](), 64, 'float32')
  strange = [
    None,
    -1,
    2**70,
    0.5,
    'x',
    [1],
    {'a': 1},
    True,
    [],
    {},
    [[]],
    1e999,
  ]
  for field in [*config, 'rope_parameters', 'layer_types', 'mlp_only_layers']:
    for value in strange:
      try:
        imported = from_config(config | {field: value})
      except ValueError:
        continue
      assert imported.bindings['NUM_LAYERS'] <= 4096, (field, value)
