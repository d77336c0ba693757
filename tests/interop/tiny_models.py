"""Makes tiny models in Hugging Face's formats, with weights seeded by names."""

import functools
import json
import pathlib
import zlib

import numpy as np

from moe.checkpoint import safetensors_file
from moe.checkpoint.safetensors_file import ToWrite

_ALL = {
  'vocab_size': 40,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 64,
}
_EXPERTS = {'num_experts_per_tok': 2, 'moe_intermediate_size': 12}
_BY_BIAS = {
  'n_routed_experts': 8,
  'n_shared_experts': 2,
  'n_group': 4,
  'topk_group': 2,
  'first_k_dense_replace': 1,
  'routed_scaling_factor': 1.5,
}
_LATENT = {
  'num_key_value_heads': 4,
  'q_lora_rank': 10,
  'kv_lora_rank': 6,
  'qk_nope_head_dim': 8,
  'qk_rope_head_dim': 4,
  'v_head_dim': 6,
}
_YARN = {
  'rope_type': 'yarn',
  'rope_theta': 10_000.0,
  'factor': 4.0,
  'original_max_position_embeddings': 16,
}
CONFIGS = {
  'llama': {'model_type': 'llama', 'rms_norm_eps': 1e-5},
  'llama_linear': {
    'model_type': 'llama',
    'tie_word_embeddings': True,
    'rope_parameters': {
      'rope_type': 'linear',
      'rope_theta': 5000.0,
      'factor': 3.0,
    },
  },
  'llama_yarn': {'model_type': 'llama', 'rope_parameters': _YARN},
  'qwen3': {'model_type': 'qwen3'},
  'mixtral': {
    'model_type': 'mixtral',
    'num_local_experts': 4,
    'num_experts_per_tok': 2,
  },
  'qwen3_moe': {
    'model_type': 'qwen3_moe',
    'num_experts': 4,
    'norm_topk_prob': True,
    'num_hidden_layers': 4,
    'decoder_sparse_step': 2,
    **_EXPERTS,
  },
  'qwen3_moe_prefix': {
    'model_type': 'qwen3_moe',
    'num_experts': 4,
    'norm_topk_prob': False,
    'mlp_only_layers': [0],
    **_EXPERTS,
  },
  'glm4_moe': {
    'model_type': 'glm4_moe',
    'use_qk_norm': True,
    **_EXPERTS,
    **_BY_BIAS,
    'n_group': 1,
    'topk_group': 1,
  },
  'deepseek_v2': {
    'model_type': 'deepseek_v2',
    'topk_method': 'group_limited_greedy',
    **_EXPERTS,
    **_BY_BIAS,
    **_LATENT,
    'rope_parameters': {**_YARN, 'mscale': 0.7, 'mscale_all_dim': 0.7},
  },
  # Like DeepSeek-V2-Lite, this model has queries without a latent, and a choice
  # of experts without groups.
  'deepseek_v2_lite': {
    'model_type': 'deepseek_v2',
    'topk_method': 'greedy',
    **_EXPERTS,
    **_BY_BIAS,
    **_LATENT,
    'q_lora_rank': None,
    'routed_scaling_factor': 1.0,
  },
  'deepseek_v3': {
    'model_type': 'deepseek_v3',
    'rope_parameters': {**_YARN, 'mscale': 1.0, 'mscale_all_dim': 0.7},
    **_EXPERTS,
    **_BY_BIAS,
    **_LATENT,
  },
}


def config(name: str) -> dict:
  """Arguments for `AutoConfig.for_model` of transformers."""
  found = _ALL | CONFIGS[name]
  if found['model_type'] in ('deepseek_v2', 'deepseek_v3'):
    del found['head_dim']
  return found


def weights(name: str, shape: list[int]) -> np.ndarray:
  """Random weights of an array; its name is the seed."""
  random = np.random.RandomState(zlib.crc32(name.encode()))
  if name.endswith('norm.weight'):
    return random.uniform(0.5, 1.5, shape).astype(np.float32)
  # The weights are large, so that each layer changes the logits, and so that no
  # two experts have almost equal scores.
  scale = 0.5 if 'gate.' in name or 'embed' in name else 0.25
  return random.uniform(-scale, scale, shape).astype(np.float32)


def write(directory: pathlib.Path, shapes: dict[str, list[int]]) -> None:
  """Writes model.safetensors with arrays of these names and shapes."""
  arrays = []
  for name, shape in shapes.items():
    make = functools.partial(weights, name, shape)
    arrays.append(ToWrite(name, 'F32', tuple(shape), make))
  safetensors_file.write(directory / 'model.safetensors', arrays)


def write_fused(directory: pathlib.Path, golden: dict) -> None:
  """Writes the arrays of `write`, but the experts of a layer in two arrays."""
  arrays = []
  for name, shape in golden['fused_shapes'].items():
    make = functools.partial(_fused, name, shape, golden['shapes'])
    arrays.append(ToWrite(name, 'F32', tuple(shape), make))
  safetensors_file.write(directory / 'model.safetensors', arrays)


def _fused(name: str, shape: list[int], single: dict) -> np.ndarray:
  layer, _, last = name.rpartition('.experts.')
  mixtral = layer.replace('.mlp', '.block_sparse_moe')
  is_mixtral = f'{mixtral}.experts.0.w1.weight' in single
  if last not in ('gate_up_proj', 'down_proj'):
    renamed = name.replace('.mlp.', '.block_sparse_moe.')
    name = renamed if renamed in single else name
    return weights(name, shape)
  layer = mixtral if is_mixtral else layer
  names = {
    'gate_up_proj': ('gate_proj', 'up_proj'),
    'down_proj': ('down_proj',),
  }
  if is_mixtral:
    names = {'gate_up_proj': ('w1', 'w3'), 'down_proj': ('w2',)}
  experts = []
  for e in range(shape[0]):
    parts = [f'{layer}.experts.{e}.{n}.weight' for n in names[last]]
    experts.append(np.concatenate([weights(n, single[n]) for n in parts]))
  return np.stack(experts)


@functools.cache
def golden(name: str) -> dict:
  """Reads a golden: config, shapes, fused_shapes, tokens, logits, greedy."""
  path = pathlib.Path(__file__).parent / 'goldens' / f'{name}.npz'
  with np.load(path, allow_pickle=False) as f:
    found = {key: f[key] for key in f.files}
  for key in ('config', 'shapes', 'fused_shapes'):
    found[key] = json.loads(str(found[key]))
  return found
