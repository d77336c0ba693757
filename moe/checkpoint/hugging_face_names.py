"""Tables of array names: those of Hugging Face's formats, and our paths.

A row begins with their name, their dims, our path and our dims. "Their" means
Hugging Face's. Their matrices are [out, in] as in `torch.nn.Linear`. The
letters of one word stand for one merged dim: 'NH D' is a matrix with a row for
each feature of each head. In a row of a layer, their name follows
`model.layers.<number>.` and our path follows the path of the block. Our paths
name parameters and state as `jax.tree_util` does.

The letters are those of `moe/types.py`. F is the width of the feed-forward
network that the row belongs to: dense, shared or expert.
"""

from typing import NamedTuple


class Row(NamedTuple):
  """One kind of array: in Hugging Face's files ("their") and in our tree.

  Attributes:
    theirs: their name; {e} is the number of an expert.
    their_dims: letters of each of their dims, see the head of this file.
    ours: our path. If one array of theirs concatenates several of ours, ' + '
      joins our paths.
    our_dims: letters of our dims, without the dim over periods of layers.
    joined: letter of the dim along which several arrays of ours are
      concatenated; '' for a single one.
    paired: letter of the dim whose last features rotary embeddings rotate; ''
      for none. In their format, features i and i + 1 rotate as a pair. In ours,
      features i and i + n / 2 do, where n is the number of such features.
  """

  theirs: str
  their_dims: str
  ours: str
  our_dims: str
  joined: str = ''
  paired: str = ''

  @property
  def paths(self) -> tuple[str, ...]:
    """Paths of our parameters in this row, relative to the block."""
    return tuple(self.ours.split(' + '))

  @property
  def is_of_one_expert(self) -> bool:
    """Whether their file has a separate array for each expert."""
    return '{e}' in self.theirs


# Arrays outside the layers. Models with tied embeddings have no lm_head.
WHOLE = (
  Row('model.embed_tokens.weight', 'V D', 'embedding/table', 'VD'),
  Row('model.norm.weight', 'D', 'last_norm/scale', 'D'),
  Row('lm_head.weight', 'V D', 'output/table', 'VD'),
)

_NORMS = (
  Row('input_layernorm.weight', 'D', 'attention_norm/scale', 'D'),
  Row('post_attention_layernorm.weight', 'D', 'feed_forward_norm/scale', 'D'),
)
_ATTENTION = (
  Row('self_attn.q_proj.weight', 'NH D', 'attention/query', 'DNH'),
  Row('self_attn.k_proj.weight', 'KH D', 'attention/key', 'DKH'),
  Row('self_attn.v_proj.weight', 'KH D', 'attention/value', 'DKH'),
  Row('self_attn.o_proj.weight', 'D NH', 'attention/out', 'NHD'),
)
_QK_NORM = (
  Row('self_attn.q_norm.weight', 'H', 'attention/query_norm/scale', 'H'),
  Row('self_attn.k_norm.weight', 'H', 'attention/key_norm/scale', 'H'),
)
_LATENT = (
  # Queries have the first array alone, or the next three.
  Row('self_attn.q_proj.weight', 'NH D', 'attention/query', 'DNH', paired='H'),
  Row('self_attn.q_a_proj.weight', 'Z D', 'attention/query_down', 'DZ'),
  Row('self_attn.q_a_layernorm.weight', 'Z', 'attention/query_norm/scale', 'Z'),
  Row(
    'self_attn.q_b_proj.weight', 'NH Z',
    'attention/query_up', 'ZNH', paired='H',
  ),
  Row(
    'self_attn.kv_a_proj_with_mqa.weight', 'Z D',
    'attention/kv_down', 'DZ', paired='Z',
  ),
  Row('self_attn.kv_a_layernorm.weight', 'Z', 'attention/kv_norm/scale', 'Z'),
  Row(
    'self_attn.kv_b_proj.weight', 'NH Z',
    'attention/key_up + attention/value_up', 'ZNH', joined='H',
  ),
  Row('self_attn.o_proj.weight', 'D NH', 'attention/out', 'NHD'),
)  # fmt: skip
_DENSE = (
  Row('mlp.gate_proj.weight', 'F D', 'feed_forward/w_gate_DF', 'DF'),
  Row('mlp.up_proj.weight', 'F D', 'feed_forward/w_up_DF', 'DF'),
  Row('mlp.down_proj.weight', 'D F', 'feed_forward/w_down_FD', 'FD'),
)
_ROUTER = (Row('mlp.gate.weight', 'E D', 'moe/router', 'DE'),)
_BIAS = (
  # In this project this bias is router state, not a trained parameter.
  Row('mlp.gate.e_score_correction_bias', 'E', 'moe/router/bias_E', 'E'),
)
_SHARED = (
  Row(
    'mlp.shared_experts.gate_proj.weight', 'F D', 'moe/shared/w_gate_DF', 'DF'
  ),
  Row('mlp.shared_experts.up_proj.weight', 'F D', 'moe/shared/w_up_DF', 'DF'),
  Row(
    'mlp.shared_experts.down_proj.weight', 'D F', 'moe/shared/w_down_FD', 'FD'
  ),
)
_EXPERTS = (
  Row('mlp.experts.{e}.gate_proj.weight', 'F D', 'moe/w_gate_EDF', 'EDF'),
  Row('mlp.experts.{e}.up_proj.weight', 'F D', 'moe/w_up_EDF', 'EDF'),
  Row('mlp.experts.{e}.down_proj.weight', 'D F', 'moe/w_down_EFD', 'EFD'),
)
_MIXTRAL = (
  Row('block_sparse_moe.gate.weight', 'E D', 'moe/router', 'DE'),
  Row('block_sparse_moe.experts.{e}.w1.weight', 'F D', 'moe/w_gate_EDF', 'EDF'),
  Row('block_sparse_moe.experts.{e}.w3.weight', 'F D', 'moe/w_up_EDF', 'EDF'),
  Row('block_sparse_moe.experts.{e}.w2.weight', 'D F', 'moe/w_down_EFD', 'EFD'),
)
# In transformers 5, an array holds matrices of all experts of a layer. The
# names are the same for all model types.
_FUSED = (
  Row(
    'mlp.experts.gate_up_proj', 'E F D',
    'moe/w_gate_EDF + moe/w_up_EDF', 'EDF', joined='F',
  ),
  Row('mlp.experts.down_proj', 'E D F', 'moe/w_down_EFD', 'EFD'),
)  # fmt: skip

# model_type -> rows of a layer. `LAYERS` has separate arrays for each expert.
# In `FUSED_LAYERS`, an array holds matrices of all experts of a layer.
LAYERS = {
  'llama': _NORMS + _ATTENTION + _DENSE,
  'qwen3': _NORMS + _ATTENTION + _QK_NORM + _DENSE,
  'mixtral': _NORMS + _ATTENTION + _MIXTRAL,
  'qwen3_moe': _NORMS + _ATTENTION + _QK_NORM + _DENSE + _ROUTER + _EXPERTS,
  'glm4_moe': (
    _NORMS + _ATTENTION + _QK_NORM + _DENSE
    + _ROUTER + _BIAS + _SHARED + _EXPERTS
  ),
  'deepseek_v2': _NORMS + _LATENT + _DENSE + _ROUTER + _SHARED + _EXPERTS,
  'deepseek_v3': (
    _NORMS + _LATENT + _DENSE + _ROUTER + _BIAS + _SHARED + _EXPERTS
  ),
}  # fmt: skip
FUSED_LAYERS = {
  'mixtral': _NORMS + _ATTENTION + _ROUTER + _FUSED,
  **{
    kind: tuple(row for row in LAYERS[kind] if row not in _EXPERTS) + _FUSED
    for kind in ('qwen3_moe', 'glm4_moe', 'deepseek_v2', 'deepseek_v3')
  },
}
# State that is 0 between training steps, so these formats do not need it.
TRANSIENT = ('load_E',)
