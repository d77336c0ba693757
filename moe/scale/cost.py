"""Counts parameters, FLOPs and bytes of a model from shapes alone."""

import dataclasses

import jax

from moe import axes
from moe.parallel import shardings
from moe.types import PyTree

# Name of the extra block that predicts the token after the next one (multi-
# token prediction).
AHEAD = 'block ahead'
# (word in a parameter's path, part of the model) pairs; the first match counts.
_PARTS = (
  ('ahead/', AHEAD),
  ('shared', 'shared experts'),
  ('norm', 'norms'),
  ('router', 'routers'),
  ('attention/out', 'attention output'),
  ('attention', 'attention'),
  ('feed_forward', 'dense layers'),
  ('embedding', 'embedding'),
  ('output', 'output head'),
)


@dataclasses.dataclass(frozen=True)
class ParameterCount:
  """Parameters of one part of a model.

  Attributes:
    total: number of parameters.
    active: number of parameters that one token uses.
  """

  total: int
  active: int


def components(
  shapes: PyTree, logical_axes: PyTree, num_active: float
) -> dict[str, ParameterCount]:
  """Counts the parameters of each part of the model.

  Args:
    shapes: arrays or shapes of the parameters.
    logical_axes: a tuple of axis names for each array, from a model's `init`.
    num_active: number of experts that one token uses.

  Returns:
    Part -> counts. In an array with an expert dim E, a share of num_active / E
    is active. The extra block of multi-token prediction (`AHEAD`) has no active
    parameters, since only training uses it.
  """
  flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
  is_axes = lambda a: isinstance(a, tuple)
  names = jax.tree.leaves(logical_axes, is_leaf=is_axes)
  counts = {}
  for (path, leaf), logical in zip(flat, names, strict=True):
    name = shardings.path_name(path)
    part = next((p for word, p in _PARTS if word in name), 'others')
    total = active = int(leaf.size)
    if axes.EXPERT in logical:
      part = 'experts'
      E = leaf.shape[logical.index(axes.EXPERT)]
      active = round(total / E * num_active)
    if part == AHEAD:
      active = 0
    old = counts.get(part, ParameterCount(0, 0))
    counts[part] = ParameterCount(old.total + total, old.active + active)
  return counts


def parameter_counts(
  shapes: PyTree, logical_axes: PyTree, num_active: float
) -> tuple[int, int]:
  """(total, active) parameters of the whole model."""
  parts = components(shapes, logical_axes, num_active).values()
  return sum(p.total for p in parts), sum(p.active for p in parts)


def flops_per_token(
  active: int,
  embedding: int,
  attention_width: int,
  num_layers: int,
  length: int,
) -> int:
  """Model FLOPs per token of a forward pass.

  A training step has three times as many.

  MFU is computed from this number. It includes two FLOPs for each active
  parameter outside `embedding`, and half of the T x T attention scores, since
  attention is causal. It includes neither recomputation nor padding.

  Args:
    active: active parameters.
    embedding: active parameters in tables that are looked up, not multiplied.
    attention_width: heads x head width.
    num_layers: number of attention layers.
    length: T, tokens of a sequence.
  """
  products = 2 * (active - embedding)
  # There are 2 products, for the scores and for the sum of values. Each has 2
  # FLOPs per feature and key, and T / 2 keys on average.
  attention = 2 * 2 * attention_width * (length // 2) * num_layers
  return products + attention


def ahead_flops_per_token(
  parts: dict[str, ParameterCount],
  head: float,
  attention_width: int,
  length: int,
) -> float:
  """Model FLOPs per token of multi-token prediction, in the forward pass.

  They are those of the extra block (`AHEAD`), and of the head on its outputs.
  Only training runs this block. For a model without it the result is 0.

  Args:
    parts: parameter counts, from `components`.
    head: parameters of the output head that a token is multiplied with.
    attention_width: heads x head width.
    length: T, tokens of a sequence.
  """
  if AHEAD not in parts:
    return 0
  return flops_per_token(
    parts[AHEAD].total + head, 0, attention_width, 1, length
  )


@dataclasses.dataclass(frozen=True)
class Execution:
  """Properties of a step's execution: attention, padding, rematerialisation.

  Attributes:
    length: T, tokens of a sequence.
    attention_width: heads x head width.
    num_layers: number of attention layers.
    padding: number of rows that the experts multiply, divided by the number of
      rows that are routed to them.
    is_tied: whether the embedding table is also the output head.
    recomputed: part of the model -> share of its products that run again for
      the gradient, from `recomputed_shares`. The key 'scores' is for attention.
    is_loss_remat: whether the products of the output head run again, as in a
      chunked loss.
    head_share: share of the output head's columns that a token is multiplied
      with.
    attention_share: share of the T x T scores that is computed. It is below 1
      if long sequences are computed in parts, or if a kernel skips masked
      tiles.
    attention_backward: products in attention's backward pass / products in its
      forward pass. It is 2, or 3.5 for a kernel that computes the scores and
      the gradient of the probabilities twice, once for queries and once for
      keys.
  """

  length: int
  attention_width: int
  num_layers: int
  padding: float = 1.0
  is_tied: bool = True
  recomputed: dict[str, float] = dataclasses.field(default_factory=dict)
  is_loss_remat: bool = False
  head_share: float = 1.0
  attention_share: float = 1.0
  attention_backward: float = 2.0


def recomputed_shares(
  policy: str, last: float, is_fused: bool, ends_sparse: bool
) -> dict[str, float]:
  """Shares of a period's products that are recomputed under a remat policy.

  The recomputation skips a product in two cases: the policy keeps its result,
  or no gradient needs its result. The latter holds for the last product of a
  period, because its result is only the output of the period.

  Args:
    policy: a policy of `moe/models/stack.py`.
    last: share of the last product among the products of a feed-forward
      network: 1 / 3 with a gate, 1 / 2 without.
    is_fused: whether a kernel computes attention.
    ends_sparse: whether the last layer of the period is sparse.

  Returns:
    Shares by part of `components`, and 'scores' for attention. No other part is
    recomputed.
  """
  if policy == 'none':
    return {}
  if policy == 'dots':
    # The policy keeps the results of products without a batch dim. Only the
    # products of scores and of experts have one.
    return {'scores': 1.0, 'experts': 1 - last}
  scores = 1.0
  if 'attention' in policy:
    # The kernel keeps everything that its backward pass needs. In plain XLA the
    # backward pass needs the probabilities, so the product of queries and keys
    # runs again, but not the product with the values.
    scores = 0.0 if is_fused else 0.5
  return {
    'attention': 1.0,
    'attention output': 0.0 if 'exchange' in policy else 1.0,
    'scores': scores,
    'dense layers': 1.0 if ends_sparse else 1 - last,
    'routers': 1.0,
    'experts': 1 - last,
    'shared experts': 1 - last,
  }


def executed_flops_per_token(
  parts: dict[str, ParameterCount], execution: Execution
) -> tuple[float, float]:
  """Executed FLOPs of products per token: (forward pass, training step).

  These FLOPs include empty capacity slots, masked scores and recomputation.
  Every product with weights runs three times in training: once forward, and
  twice for the gradients of inputs and weights. This holds for the first layer
  too, because embeddings need a gradient. With remat, the block for multi-token
  prediction and its head run once more.
  """
  products = {
    part: 2 * c.active * (execution.padding if part == 'experts' else 1)
    for part, c in parts.items()
    if part not in ('embedding', 'output head', 'norms', 'others')
  }
  keys = execution.length * execution.attention_share
  scores = 4 * execution.attention_width * keys * execution.num_layers
  table = 'embedding' if execution.is_tied else 'output head'
  columns = execution.head_share
  head = 2 * columns * parts[table].active if table in parts else 0
  forward = sum(products.values()) + scores + head
  ahead = ahead_flops_per_token(
    parts,
    columns * parts[table].total if table in parts else 0,
    execution.attention_width,
    execution.length,
  )
  again = sum(
    execution.recomputed.get(part, 0.0) * flops
    for part, flops in (products | {'scores': scores}).items()
  )
  again += head * execution.is_loss_remat + ahead * bool(execution.recomputed)
  backward = 2 * (forward - scores) + execution.attention_backward * scores
  return forward, forward + backward + again + 3 * ahead


def device_bytes(tree: PyTree) -> int:
  """Bytes of arrays on one device, from shapes with shardings.

  Arrays in the host's memory are left out.
  """
  return sum(
    shardings.device_bytes(leaf, leaf.sharding)
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind != 'pinned_host'
  )


def total_bytes(tree: PyTree) -> int:
  """Bytes of all arrays, each array counted once whatever its sharding."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
