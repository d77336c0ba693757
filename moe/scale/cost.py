"""Parameters, FLOPs and bytes of a model, from shapes alone."""

import dataclasses

import jax

from moe import axes
from moe.parallel import shardings
from moe.types import PyTree

# The block that predicts the token after the next one.
AHEAD = 'block ahead'
# Parts of a model by what its parameters' paths say, first match first.
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
class Counted:
  """Numbers in one part of a model.

  Attributes:
    total: parameters.
    active: of these, what one token passes through.
  """

  total: int
  active: int


def components(
  shapes: PyTree, logical_axes: PyTree, num_active: float
) -> dict[str, Counted]:
  """Parameters by part of the model.

  Args:
    shapes: arrays or shapes of the parameters.
    logical_axes: a tuple of axis names for each, as a model's `init` gives it.
    num_active: experts that one token sees.

  Returns:
    Part -> counts; of an array with an expert dim E, num_active / E is active,
    and nothing of the block ahead, which is in training alone.
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
    old = counts.get(part, Counted(0, 0))
    counts[part] = Counted(old.total + total, old.active + active)
  return counts


def parameter_counts(
  shapes: PyTree, logical_axes: PyTree, num_active: float
) -> tuple[int, int]:
  """(total, active) over all `components`."""
  parts = components(shapes, logical_axes, num_active).values()
  return sum(p.total for p in parts), sum(p.active for p in parts)


def flops_per_token(
  active: int,
  embedding: int,
  attention_width: int,
  num_layers: int,
  length: int,
) -> int:
  """Model FLOPs of one token's forward pass; training costs three times that.

  The counter for MFU: two FLOPs for each active parameter in a product,
  attention counted causal (half of the T x T scores), no recomputation, no
  padding.

  Args:
    active: active parameters.
    embedding: of these, in tables that are read and not multiplied.
    attention_width: heads x head width.
    num_layers: attention layers.
    length: T.
  """
  products = 2 * (active - embedding)
  # Scores and weighted values: 2 products of 2 FLOPs, over T / 2 keys each.
  attention = 2 * 2 * attention_width * (length // 2) * num_layers
  return products + attention


def ahead_flops_per_token(
  parts: dict[str, Counted], head: int, attention_width: int, length: int
) -> int:
  """Model FLOPs of the block ahead and its head, forward, for a training token.

  Args:
    parts: as `components` counts them.
    head: parameters of the head.
    attention_width: heads x head width.
    length: T.
  """
  if AHEAD not in parts:
    return 0
  return flops_per_token(
    parts[AHEAD].total + head, 0, attention_width, 1, length
  )


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a step does beyond the model's own products.

  Attributes:
    length: T.
    attention_width: heads x head width.
    num_layers: attention layers.
    padding: rows that the experts multiply over rows routed to them.
    is_tied: whether the embedding table is the output head too.
    redone: part of the model -> share of its products that are done again for
      the gradient, see `redone`; 'scores' are those of attention.
    is_loss_remat: whether those of the head are, as in a chunked loss.
    attention_share: of the T x T scores that are computed: less than 1 where
      long sequences leave out keys, or a kernel what no query sees.
    attention_backward: products of attention's backward pass over those of its
      forward pass: 2, or 3.5 in a kernel that makes scores and their gradient
      again, for queries and for keys.
  """

  length: int
  attention_width: int
  num_layers: int
  padding: float = 1.0
  is_tied: bool = True
  redone: dict[str, float] = dataclasses.field(default_factory=dict)
  is_loss_remat: bool = False
  attention_share: float = 1.0
  attention_backward: float = 2.0


def redone(
  policy: str, last: float, is_fused: bool, ends_sparse: bool
) -> dict[str, float]:
  """Shares of a period's products that a remat policy does again.

  The policies of `moe/models/stack.py`. Of a block that is done again, a
  product is left out where the policy keeps its result, and where nothing needs
  it: the last product of a period makes nothing but the period's own output.

  Args:
    policy: its name.
    last: of a feed-forward network's products, the one that ends it: 1 / 3 with
      a gate, 1 / 2 without.
    is_fused: whether attention is a kernel.
    ends_sparse: whether experts end the period; else a dense layer does.

  Returns:
    Part of `components`, or 'scores' of attention, -> share.
  """
  if policy == 'none':
    return {}
  if policy == 'dots':
    # Products without a batch dim are kept: all but scores and experts.
    return {'scores': 1.0, 'experts': 1 - last}
  scores = 1.0
  if 'attention' in policy:
    # The kernel keeps what its backward pass needs; XLA's needs probabilities,
    # half of the products.
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
  parts: dict[str, Counted], recipe: Recipe
) -> tuple[float, float]:
  """FLOPs of products that really run, per token: (forward, training step).

  Capacity slots that stay empty are multiplied too, masked scores are computed,
  what remat throws away is computed again. The block ahead counts as a whole
  once more under remat, its attention as causal. The first layer needs no
  gradient with respect to its input ids, but its embeddings do: every product
  runs three times.
  """
  products = {
    part: 2 * c.active * (recipe.padding if part == 'experts' else 1)
    for part, c in parts.items()
    if part not in ('embedding', 'output head', 'norms', 'others')
  }
  keys = recipe.length * recipe.attention_share
  scores = 4 * recipe.attention_width * keys * recipe.num_layers
  table = 'embedding' if recipe.is_tied else 'output head'
  head = 2 * parts[table].active if table in parts else 0
  forward = sum(products.values()) + scores + head
  ahead = ahead_flops_per_token(
    parts,
    parts[table].total if table in parts else 0,
    recipe.attention_width,
    recipe.length,
  )
  again = sum(
    recipe.redone.get(part, 0.0) * flops
    for part, flops in (products | {'scores': scores}).items()
  )
  again += head * recipe.is_loss_remat + ahead * bool(recipe.redone)
  backward = 2 * (forward - scores) + recipe.attention_backward * scores
  return forward, forward + backward + again + 3 * ahead


def device_bytes(tree: PyTree) -> int:
  """Bytes of shapes with shardings on one device; the host's do not count."""
  return sum(
    shardings.device_bytes(leaf, leaf.sharding)
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind != 'pinned_host'
  )


def total_bytes(tree: PyTree) -> int:
  """Bytes of all arrays, each once."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
