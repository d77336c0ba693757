"""Converts a model's sizes to Hugging Face's config.json.

The table `FIELDS` maps the fields of each format to our macros, or to arguments
that a gin file binds. The table `GRANTED` has further macros and arguments, for
which a format allows one value alone. An import sets these values. The export
of a model with another value is an error that names the macro.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from moe.layers.attention import Attention
from moe.models.decoder import Decoder
from moe.routing.gates import Sigmoid, Switch, TopK

CLASSES = {
  'llama': 'LlamaForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'mixtral': 'MixtralForCausalLM',
  'qwen3_moe': 'Qwen3MoeForCausalLM',
  'glm4_moe': 'Glm4MoeForCausalLM',
  'deepseek_v2': 'DeepseekV2ForCausalLM',
  'deepseek_v3': 'DeepseekV3ForCausalLM',
}

_ALL = {
  'vocab_size': 'VOCAB_SIZE',
  'hidden_size': 'D_MODEL',
  'num_hidden_layers': 'NUM_LAYERS',
  'num_attention_heads': 'NUM_HEADS',
  'rms_norm_eps': 'NORM_EPSILON',
  'tie_word_embeddings': 'TIE_EMBEDDINGS',
}
_GROUPED = {'num_key_value_heads': 'NUM_KV_HEADS', 'head_dim': 'HEAD_DIM'}
_LATENT = {
  'q_lora_rank': 'QUERY_RANK',
  'kv_lora_rank': 'KV_RANK',
  'qk_nope_head_dim': 'CONTENT_DIM',
  'qk_rope_head_dim': 'ROPE_DIM',
  'v_head_dim': 'VALUE_DIM',
}
_DENSE = {'intermediate_size': 'D_FF'}
_SHARED = {
  'moe_intermediate_size': 'EXPERT_D_FF',
  'n_routed_experts': 'NUM_EXPERTS',
  'num_experts_per_tok': 'TOP_K',
  'first_k_dense_replace': 'NUM_DENSE_PREFIX',
}
_SIGMOID = _SHARED | {
  'routed_scaling_factor': 'gates.Sigmoid.scaling',
  'n_group': 'gates.Sigmoid.num_groups',
  'topk_group': 'gates.Sigmoid.top_groups',
}
_SOFTMAX = _SHARED | {
  'routed_scaling_factor': 'gates.TopK.scaling',
  'n_group': 'gates.TopK.num_groups',
  'topk_group': 'gates.TopK.top_groups',
}
FIELDS = {
  'llama': _ALL | _GROUPED | _DENSE,
  'qwen3': _ALL | _GROUPED | _DENSE,
  'mixtral': _ALL
  | _GROUPED
  | {
    'intermediate_size': 'EXPERT_D_FF',
    'num_local_experts': 'NUM_EXPERTS',
    'num_experts_per_tok': 'TOP_K',
  },
  'qwen3_moe': _ALL
  | _GROUPED
  | _DENSE
  | {
    'moe_intermediate_size': 'EXPERT_D_FF',
    'num_experts': 'NUM_EXPERTS',
    'num_experts_per_tok': 'TOP_K',
    'norm_topk_prob': 'gates.TopK.renormalize',
  },
  'glm4_moe': _ALL | _GROUPED | _DENSE | _SIGMOID | {'use_qk_norm': 'QK_NORM'},
  'deepseek_v2': _ALL | _LATENT | _DENSE | _SOFTMAX,
  'deepseek_v3': _ALL | _LATENT | _DENSE | _SIGMOID,
}

# The values that a format requires. None stands for a macro that has no meaning
# for the format.
_PLAIN = {'ACTIVATION': 'swiglu', 'LONGEST_BLOCK': 0}
_NO_EXPERTS = {'MOE_EVERY': 0, 'NUM_DENSE_PREFIX': 0, 'ROUTER': None}
_BY_BIAS = {'MOE_EVERY': 1, 'ROUTER': '@gates.Sigmoid'}
_TOP_K = {'ROUTER': '@gates.TopK'}
_UNSCALED = {'gates.TopK.num_groups': 1, 'gates.TopK.scaling': 1.0}
GRANTED = {
  'llama': _PLAIN | _NO_EXPERTS | {'QK_NORM': False},
  'qwen3': _PLAIN | _NO_EXPERTS | {'QK_NORM': True},
  'mixtral': _PLAIN
  | _TOP_K
  | _UNSCALED
  | {
    'MOE_EVERY': 1,
    'NUM_DENSE_PREFIX': 0,
    'gates.TopK.renormalize': True,
    'SHARED_D_FF': 0,
    'QK_NORM': False,
  },
  'qwen3_moe': _PLAIN
  | _TOP_K
  | _UNSCALED
  | {'SHARED_D_FF': 0, 'QK_NORM': True},
  'glm4_moe': _PLAIN | _BY_BIAS,
  'deepseek_v2': _PLAIN
  | _TOP_K
  | {'MOE_EVERY': 1, 'gates.TopK.renormalize': False},
  'deepseek_v3': _PLAIN | _BY_BIAS,
}

# Type of position scaling -> its fields in config.json. `_OUR_ROPE` maps a
# field to the argument of `position.Rope` if their names differ.
ROPE_FIELDS = {
  'linear': ('factor',),
  'yarn': (
    'factor',
    'original_max_position_embeddings',
    'beta_fast',
    'beta_slow',
    'attention_factor',
    'mscale',
    'mscale_all_dim',
  ),
}
_OUR_ROPE = {'original_max_position_embeddings': 'original_length'}
BY_BIAS = ('glm4_moe', 'deepseek_v3')
LATENT = ('deepseek_v2', 'deepseek_v3')
HAS_SHARED = (*BY_BIAS, 'deepseek_v2')
_GROUPS = ('num_groups', 'top_groups', 'scaling')
# Paths of the last matrix of each residual branch.
_BRANCH_END = re.compile(r'stack/.*/(attention/out|w_down_\w+)')


def our_rope(field: str) -> str:
  """The argument that a gin file binds for a field of `ROPE_FIELDS`."""
  return f'position.Rope.{_OUR_ROPE.get(field, field)}'


def sizes(model: Decoder) -> dict[str, Any]:
  """Returns macro or argument -> value, for a model's sizes and choices.

  Raises:
    ValueError: for a part or a value that no format supports; the message names
      it.
  """
  for name in ('extra_tables', 'ranges', 'code_levels', 'patch_values'):
    if getattr(model, name):
      raise ValueError(
        f'decoder.Decoder.{name}={getattr(model, name)} is not supported by any'
        ' format of Hugging Face: they hold text alone.'
      )
  # With parent=None these are not submodules; only their sizes are read.
  stack = model.stack(parent=None)
  block = stack.block(parent=None)
  attention = block.attention(parent=None)
  layers = model.anatomy().layers
  epsilons = {model.norm_epsilon, block.norm_epsilon}
  found = {
    'VOCAB_SIZE': model.vocab_size,
    'D_MODEL': model.d_model,
    'TIE_EMBEDDINGS': model.tie_embeddings,
    'NUM_LAYERS': stack.num_layers,
    'NUM_HEADS': attention.num_heads,
    'LONGEST_BLOCK': attention.longest_block,
    'ROPE_BASE': attention.rope.base,
    'position.Rope.share': attention.rope.share,
    'position.Rope.scaling': attention.rope.scaling,
    **{
      our_rope(field): getattr(attention.rope, _OUR_ROPE.get(field, field))
      for field in ROPE_FIELDS['yarn']
    },
    'ACTIVATION': layers[0].network.activation,
  }
  if isinstance(attention, Attention):
    found |= {
      'NUM_KV_HEADS': attention.num_kv_heads,
      'HEAD_DIM': attention.head_dim,
      'QK_NORM': attention.use_qk_norm,
    }
    epsilons.add(attention.norm_epsilon)
  else:
    found |= {m: getattr(attention, m.lower()) for m in _LATENT.values()}
    if attention.norm_epsilon != 1e-6:
      raise ValueError(
        'LatentAttention.norm_epsilon must be 1e-6, as in the formats of'
        f' DeepSeek, got {attention.norm_epsilon}.'
      )
  if len(epsilons) > 1:
    raise ValueError(
      f'NORM_EPSILON must be the same of all norms, got {sorted(epsilons)}: no'
      ' format has several.'
    )
  found['NORM_EPSILON'] = model.norm_epsilon
  return found | _networks(model, layers, stack, block)


def _networks(model, layers, stack, block) -> dict[str, Any]:
  """Macro or argument -> value, for dense networks, experts and router."""
  widths = {layer.feed_forward.width for layer in layers if layer.feed_forward}
  if len(widths) > 1:
    raise ValueError(
      f'D_FF must be the same for all dense layers, got {sorted(widths)}: no'
      ' format has several.'
    )
  # Formats need the width of a dense layer even if there is none.
  unused = block.feed_forward(parent=None).width
  found = {'D_FF': min(widths, default=unused)}
  if model.anatomy().experts is None:
    return found | _NO_EXPERTS
  moe, experts = block.moe(parent=None), model.anatomy().experts
  router, gate = experts.router, None
  if type(router) is Sigmoid:
    gate = '@gates.Sigmoid'
    for name in _GROUPS:
      found[f'gates.Sigmoid.{name}'] = getattr(router, name)
  elif type(router) in (TopK, Switch):
    gate = '@gates.TopK'
    # Switch equals TopK with one choice and weights that are not renormalised.
    top_k = router if type(router) is TopK else TopK(1, renormalize=False)
    for name in (*_GROUPS, 'renormalize'):
      found[f'gates.TopK.{name}'] = getattr(top_k, name)
  if gate is None or experts.dispatch is None:
    name = type(moe if experts.dispatch is None else router).__name__
    raise ValueError(
      f'{name} is not supported by any format of Hugging Face: use gates.TopK,'
      ' gates.Switch or gates.Sigmoid.'
    )
  return found | {
    'ROUTER': gate,
    'MOE_EVERY': stack.moe_every,
    'NUM_DENSE_PREFIX': stack.num_dense_prefix,
    'NUM_EXPERTS': experts.num_experts,
    'TOP_K': router.num_active,
    'EXPERT_D_FF': experts.expert.width,
    'SHARED_D_FF': experts.shared_width,
  }


def format_of(found: Mapping[str, Any]) -> str:
  """The format that suits the result of `sizes` best: a key of `CLASSES`."""
  if 'KV_RANK' in found:
    is_softmax = found['ROUTER'] == '@gates.TopK'
    return 'deepseek_v2' if is_softmax else 'deepseek_v3'
  if found['ROUTER'] is None:
    return 'qwen3' if found['QK_NORM'] else 'llama'
  if found['ROUTER'] == '@gates.Sigmoid':
    return 'glm4_moe'
  return 'qwen3_moe' if found['QK_NORM'] else 'mixtral'


def to_config(model: Decoder, length: int, dtype: str) -> dict[str, Any]:
  """Returns the fields of config.json that describe a model.

  Args:
    model: the model.
    length: number of tokens of the longest text in its training.
    dtype: dtype of the weights, such as 'float32'.

  Raises:
    ValueError: for a part or a value that the format does not support; the
      message names it.
  """
  found = sizes(model)
  kind = format_of(found)
  for macro, granted in GRANTED[kind].items():
    if found[macro] != granted:
      raise ValueError(
        f'{macro}={found[macro]} is not supported by the format {kind}, which'
        f' suits this model best: it must be {granted}.'
      )
  config = {
    'architectures': [CLASSES[kind]],
    'model_type': kind,
    **{
      field: found[macro]
      for field, macro in FIELDS[kind].items()
      if found.get(macro) is not None
    },
    'hidden_act': 'silu',
    'attention_bias': False,
    'max_position_embeddings': length,
    'dtype': dtype,
    'torch_dtype': dtype,  # the field's name before transformers 4.56
    **_rope_config(found),
  }
  if kind == 'llama' and model.d_model % found['NUM_HEADS']:
    raise ValueError(
      f'D_MODEL={model.d_model} must be a multiple of'
      f' NUM_HEADS={found["NUM_HEADS"]} in the format llama.'
    )
  if kind == 'qwen3_moe':
    config |= _sparse_layers(model, found)
  if kind in HAS_SHARED:
    config |= _shared_config(kind, found)
  if kind in LATENT:
    config['q_lora_rank'] = found['QUERY_RANK'] or None
  return config


def _rope_config(found: Mapping[str, Any]) -> dict[str, Any]:
  config = {'rope_theta': found['ROPE_BASE']}
  if 'KV_RANK' not in found:
    # The field is needed even for 1: without it, GLM-4-MoE uses 0.5.
    config['partial_rotary_factor'] = found['position.Rope.share']
  elif found['position.Rope.share'] != 1:
    raise ValueError(
      f'position.Rope.share={found["position.Rope.share"]} is not supported by'
      ' the formats of DeepSeek: choose ROPE_DIM and CONTENT_DIM instead.'
    )
  scaling = found['position.Rope.scaling']
  if scaling == 'none':
    return config
  fields = {f: found[our_rope(f)] for f in ROPE_FIELDS[scaling]}
  # A missing field means 0 or None, so these values are left out.
  fields = {field: value for field, value in fields.items() if value}
  return config | {'rope_scaling': {'rope_type': scaling, **fields}}


def _sparse_layers(model: Decoder, found: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that say which layers of Qwen3-MoE have experts."""
  layers = model.anatomy().layers
  dense = [i for i, layer in enumerate(layers) if not layer.experts]
  if found['NUM_DENSE_PREFIX']:
    return {'decoder_sparse_step': 1, 'mlp_only_layers': dense}
  return {'decoder_sparse_step': found['MOE_EVERY'], 'mlp_only_layers': []}


def _shared_config(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
  shared, width = found['SHARED_D_FF'], found['EXPERT_D_FF']
  if not shared or shared % width:
    raise ValueError(
      f'SHARED_D_FF={shared} is not supported by the format {kind}: it must be'
      f' EXPERT_D_FF={width} or a multiple of it.'
    )
  config = {
    'n_shared_experts': shared // width,
    'norm_topk_prob': kind in BY_BIAS,
  }
  if kind in BY_BIAS:
    config['num_nextn_predict_layers'] = 0
  if kind in LATENT:
    config['num_key_value_heads'] = found['NUM_HEADS']
  if kind == 'deepseek_v2':
    is_limited = found['gates.TopK.num_groups'] > 1
    config |= {
      'scoring_func': 'softmax',
      'topk_method': 'group_limited_greedy' if is_limited else 'greedy',
    }
  if kind == 'deepseek_v3':
    config |= {
      'rope_interleave': True,
      'scoring_func': 'sigmoid',
      'topk_method': 'noaux_tc',
    }
  return config


def fold(model: Decoder, paths: Iterable[str]) -> dict[str, float]:
  """Returns parameter -> factor. The factors replace scales of activations.

  No format has such scales, so the export multiplies parameters instead:

  - The embedding table is multiplied by the embedding scale. If the table is
    also the output head, the last norm is divided by this scale, so that logits
    stay the same.
  - A parametrisation scales the hidden states that the head reads, and the
    output of each residual branch. So the last norm and the last matrix of each
    branch are multiplied.

  Args:
    model: the model.
    paths: paths of its parameters.
  """
  scale, scales = model.embedding_scale, model.parametrisation
  scale = math.sqrt(model.d_model) if scale is None else scale
  factors = {'embedding/table': scale}
  last_norm = 1.0 / scale if model.tie_embeddings else 1.0
  if scales:
    last_norm *= scales.logits_scale(model.d_model)
    num_layers = model.stack(parent=None).num_layers
    branch = scales.residual_scale(num_layers)
    factors |= {p: branch for p in paths if _BRANCH_END.fullmatch(p)}
  factors['last_norm/scale'] = last_norm
  return {path: factor for path, factor in factors.items() if factor != 1.0}
