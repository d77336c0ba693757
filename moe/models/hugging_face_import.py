"""Converts Hugging Face's config.json to bindings of a gin file.

An unknown field is an error that names the field, since it may change what the
model computes. A value that our models do not support is an error, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moe.models.decoder import DTYPES
from moe.models.hugging_face import (
  BY_BIAS,
  CLASSES,
  FIELDS,
  GRANTED,
  HAS_SHARED,
  LATENT,
  ROPE_FIELDS,
  our_rope,
)

# The allowed values of some fields; each field may be missing.
_REQUIRED = {
  'hidden_act': ('silu',),
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'use_sliding_window': (False,),
  'moe_layer_freq': (1,),
  'scoring_func': ('sigmoid',),
  'topk_method': ('noaux_tc',),
  'quantization_config': (None,),
}
# The allowed values of DeepSeek-V2, which replace or extend those of
# `_REQUIRED`.
_SOFTMAX = {
  'scoring_func': ('softmax',),
  'topk_method': ('greedy', 'group_limited_greedy'),
  'norm_topk_prob': (False,),
}
# Fields that `_check` accepts with any value. Most do not change the results
# for a text that fits the model's length. Functions below read the others.
_IGNORED = {
  '_name_or_path', 'architectures', 'attention_dropout', 'auto_map',
  'aux_loss_alpha', 'bos_token_id', 'dtype', 'eos_token_id', 'ep_size',
  'initializer_range', 'max_position_embeddings', 'max_window_layers',
  'model_type', 'output_router_logits', 'pad_token_id', 'pretraining_tp',
  'qk_head_dim', 'rope_parameters', 'rope_scaling', 'rope_theta',
  'router_aux_loss_coef', 'router_jitter_noise', 'seq_aux', 'torch_dtype',
  'transformers_version', 'use_cache', 'num_nextn_predict_layers',
  'num_mtp_layers',
}  # fmt: skip
# Further known fields, which functions below read.
_READ = {
  'decoder_sparse_step', 'layer_types', 'mlp_only_layers', 'n_shared_experts',
  'norm_topk_prob', 'partial_rotary_factor', 'rope_interleave',
  'sliding_window',
}  # fmt: skip
# Format -> fields that transformers writes although other fields imply them.
_REPEATED = dict.fromkeys(LATENT, {'head_dim', 'num_key_value_heads'})
_ALIASES = {
  'num_local_experts': 'num_experts',
  'num_experts': 'num_local_experts',
}
_BASE = {'mixtral': 1e6}
# The largest number of layers, and the largest value of any size. With these
# limits, reading a file cannot fill the memory.
_MAX_LAYERS, _MAX_SIZE = 4096, 2**31 - 1


class Imported(NamedTuple):
  """A model of Hugging Face as bindings of a gin file.

  Attributes:
    model_type: the format.
    is_latent: whether the model has latent attention, which needs another gin
      file.
    bindings: macro or argument -> value for a gin file.
    length: largest number of tokens that the model reads at once.
    rope_dim: number of rotary features of a latent head, if the weight files
      store the two features of each pair side by side; else 0.
    num_extra_layers: number of layers after the last one that predict further
      tokens; the import leaves them out.
  """

  model_type: str
  is_latent: bool
  bindings: dict[str, Any]
  length: int
  rope_dim: int
  num_extra_layers: int

  def as_gin(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (gin files, bindings) of a run that trains this model.

    Args:
      overrides: further bindings, such as those of the mesh.
    """
    model = 'latent_decoder' if self.is_latent else 'decoder'
    parts = [f'models/{model}', 'parallel/data', 'tasks/builtin', 'runs/train']
    bindings = [f'{name}={_written(v)}' for name, v in self.bindings.items()]
    bindings += [f'SEQUENCE_LENGTH={self.length}', 'TRAIN_STEPS=1000']
    bindings += ['LEARNING_RATE=1e-5', *overrides]
    return [f'{part}.gin' for part in parts], bindings


def _written(value: object) -> str:
  """A value in gin's syntax; a text that begins with @ is a reference."""
  is_reference = isinstance(value, str) and value.startswith('@')
  return value if is_reference else repr(value)


def from_config(config: Mapping[str, Any]) -> Imported:
  """Reads the content of a config.json.

  Raises:
    ValueError: for a field that is missing, wrong, unknown, or not supported by
      our models. The message names the field, except for some wrong types.
  """
  try:
    return _read(config)
  # Python raises these errors if a field has a value of another type than
  # `_read` expects.
  except (TypeError, OverflowError, AttributeError) as error:
    raise ValueError(f'a field is of the wrong type ({error})') from error


def _read(config: Mapping[str, Any]) -> Imported:
  kind = config.get('model_type')
  if kind not in CLASSES:
    raise ValueError(
      f'model_type={kind!r} must be one of {", ".join(CLASSES)}: other'
      ' architectures are not known here.'
    )
  config = {
    _alias(kind, field): value for field, value in _filled(kind, config).items()
  }
  _check(kind, config)
  _check_types(kind, config)
  bindings = {m: v for m, v in GRANTED[kind].items() if v is not None}
  for field, macro in FIELDS[kind].items():
    if config.get(field) is None:
      raise ValueError(f'{field} must be in config.json of a {kind}.')
    bindings[macro] = config[field]
  if kind == 'mixtral':
    bindings['D_FF'] = bindings['EXPERT_D_FF']
  elif kind in ('llama', 'qwen3'):
    # No layer has experts, but the gin file needs a value for each macro.
    bindings |= {'NUM_EXPERTS': 2, 'TOP_K': 2, 'EXPERT_D_FF': bindings['D_FF']}
  elif kind == 'qwen3_moe':
    bindings |= _sparse_layers(config)
  if kind in HAS_SHARED:
    shared = _count(config, 'n_shared_experts', 1)
    bindings['SHARED_D_FF'] = shared * bindings['EXPERT_D_FF']
  bindings |= _rope(config)
  bindings |= {'EMBEDDING_SCALE': 1.0, 'DTYPE': _dtype(config)}
  is_latent = 'KV_RANK' in bindings
  is_interleaved = config.get('rope_interleave', True)
  extra = max(
    _count({field: 0, **config}, field, 0)
    for field in ('num_nextn_predict_layers', 'num_mtp_layers')
  )
  return Imported(
    kind,
    is_latent,
    bindings,
    _count(config, 'max_position_embeddings', 1),
    bindings['ROPE_DIM'] if is_latent and is_interleaved else 0,
    extra,
  )


def _alias(kind: str, field: str) -> str:
  other = _ALIASES.get(field)
  return other if other in FIELDS[kind] else field


def _filled(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the config with defaults for fields that are missing or null.

  If a model of the format deepseek_v2 chooses experts without groups, the
  numbers of groups become 1.
  """
  config = dict(config)
  config.setdefault('tie_word_embeddings', False)
  if kind in LATENT and config.get('q_lora_rank', 0) is None:
    config['q_lora_rank'] = 0  # Queries have no latent vector.
  if kind == 'deepseek_v2' and config.get('topk_method', 'greedy') == 'greedy':
    config |= {'n_group': 1, 'topk_group': 1}
  heads, width = config.get('num_attention_heads'), config.get('hidden_size')
  if kind not in LATENT and type(heads) is type(width) is int and heads > 0:
    if config.get('num_key_value_heads') is None:
      config['num_key_value_heads'] = heads
    if config.get('head_dim') is None:
      config['head_dim'] = width // heads
  if kind == 'glm4_moe':
    config.setdefault('use_qk_norm', False)
  return config


def _check(kind: str, config: Mapping[str, Any]) -> None:
  """Raises ValueError at the first field that is unknown or not supported."""
  required = _REQUIRED | (_SOFTMAX if kind == 'deepseek_v2' else {})
  for field, allowed in required.items():
    if field in config and config[field] not in allowed:
      raise ValueError(
        f'{field}={config[field]!r} is not supported here: it must be'
        f' {" or ".join(map(repr, allowed))}.'
      )
  if config.get('sliding_window') is not None and config.get(
    'use_sliding_window', True
  ):
    raise ValueError(
      f'sliding_window={config["sliding_window"]} is not supported here:'
      ' our attention sees all earlier tokens.'
    )
  for layer in config.get('layer_types') or ():
    if layer != 'full_attention':
      raise ValueError(f'layer_types with {layer!r} is not supported here.')
  if kind in BY_BIAS and config.get('norm_topk_prob') is not True:
    raise ValueError(
      f'norm_topk_prob={config.get("norm_topk_prob")} is not supported here:'
      ' gates.Sigmoid divides the weights of a token by their sum.'
    )
  known = FIELDS[kind].keys() | _REQUIRED.keys() | _IGNORED | _READ
  unknown = sorted(config.keys() - known - _REPEATED.get(kind, set()))
  if unknown:
    raise ValueError(
      f'{unknown[0]}={config[unknown[0]]!r} is an unknown field: it may change'
      ' what the model computes.'
    )


def _check_types(kind: str, config: Mapping[str, Any]) -> None:
  """Raises ValueError at the first field of wrong type or out of range."""
  for field, macro in FIELDS[kind].items():
    value = config.get(field)
    wanted = (int, float) if field == 'routed_scaling_factor' else int
    if field == 'rms_norm_eps':
      wanted = float
    if macro in ('TIE_EMBEDDINGS', 'QK_NORM', 'gates.TopK.renormalize'):
      wanted = bool
    is_right = isinstance(value, wanted) and (
      wanted is bool or not isinstance(value, bool)
    )
    most = _MAX_LAYERS if macro == 'NUM_LAYERS' else _MAX_SIZE
    if value is not None and not (is_right and 0 <= value <= most):
      raise ValueError(f'{field}={value!r} must be a number or a choice.')


def _count(config: Mapping[str, Any], field: str, least: int) -> int:
  value = config.get(field)
  if type(value) is not int or not least <= value <= _MAX_SIZE:
    raise ValueError(f'{field}={value!r} must be a number, at least {least}.')
  return value


def _sparse_layers(config: Mapping[str, Any]) -> dict[str, int]:
  """Bindings that say which layers of Qwen3-MoE have experts."""
  layers = _count(config, 'num_hidden_layers', 1)
  step = _count({'decoder_sparse_step': 1, **config}, 'decoder_sparse_step', 0)
  dense_too = set(config.get('mlp_only_layers') or [])
  is_sparse = [
    bool(step) and (i + 1) % step == 0 and i not in dense_too
    for i in range(layers)
  ]
  places = [i for i in range(layers) if is_sparse[i]]
  every = places[1] - places[0] if len(places) > 1 else 1
  prefix = places[0] + 1 - every if places else layers
  ours = [i >= prefix and (i - prefix + 1) % every == 0 for i in range(layers)]
  if places and prefix >= 0 and ours == is_sparse and ours[-1]:
    return {'NUM_DENSE_PREFIX': prefix, 'MOE_EVERY': every}
  raise ValueError(
    f'mlp_only_layers={sorted(dense_too)} with decoder_sparse_step={step}'
    ' is not supported here: experts must come at equal distances.'
  )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """Bindings for rotary positions, from the old or the new form of fields."""
  said = config.get('rope_parameters') or config.get('rope_scaling') or {}
  if not isinstance(said, dict):
    raise ValueError(f'rope_parameters={said!r} must be fields by name.')
  said = dict(said)
  name = said.pop('rope_type', said.pop('type', 'default'))
  said.pop('type', None)
  kind = config['model_type']
  base = said.pop('rope_theta', config.get('rope_theta'))
  share = said.pop('partial_rotary_factor', config.get('partial_rotary_factor'))
  default_share = 0.5 if kind == 'glm4_moe' else 1.0
  bindings = {
    'ROPE_BASE': float(_BASE.get(kind, 1e4) if base is None else base),
    'position.Rope.share': float(default_share if share is None else share),
  }
  if name == 'default':
    said = {}
  elif name not in ROPE_FIELDS:
    raise ValueError(
      f'rope_type={name!r} is not supported here: it must be default,'
      f' {" or ".join(ROPE_FIELDS)}.'
    )
  else:
    bindings['position.Rope.scaling'] = name
  for field, value in said.items():
    if field not in ROPE_FIELDS[name] or isinstance(value, str | list | dict):
      raise ValueError(
        f'{field}={value!r} of a rope_type={name!r} is not supported here.'
      )
    if value is not None:
      whole = field == 'original_max_position_embeddings'
      bindings[our_rope(field)] = int(value) if whole else float(value)
  return bindings


def _dtype(config: Mapping[str, Any]) -> str:
  dtype = config.get('dtype', config.get('torch_dtype')) or 'float32'
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r} must be one of {", ".join(DTYPES)}.')
  return dtype
