"""Makes the parameters of a sparse model from those of a dense model.

Every expert begins as a copy of the dense layer (Komatsuzaki et al. 2022,
https://arxiv.org/abs/2212.05055). The routers are initialised at random.

Equal experts give the same output as the dense layer, if the combine weights of
a token add up to 1 and no row is dropped. So `Copy` with gates.TopK and
renormalize = True is exact up to rounding. These cases are not exact:
  plain probabilities (Switch, renormalize = False), because they do not add up
  to 1;
  zero-computation experts;
  training steps that drop rows;
  `Noise` and `Drop`, which change the experts so that they diverge sooner.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from moe import bounds
from moe.checkpoint import restore
from moe.parallel.shardings import Shaped, path_name, without_dim
from moe.types import Array, PyTree

Weights = dict[str, Array]


class Method:
  """A way to make the experts of a sparse layer from a dense layer."""

  def experts(self, weights: Weights, num_experts: int, key: Array) -> Weights:
    """Makes the matrices of E experts from those of a dense layer.

    Args:
      weights: name -> matrix [..., D, F]; a matrix with 'down' in its name is
        [..., F, D].
      num_experts: E.
      key: random key.

    Returns:
      Name -> matrices of all experts, [..., E, D, F] or [..., E, F, D].
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Copy(Method):
  """Equal experts; they diverge in training, since their tokens differ."""

  def experts(self, weights: Weights, num_experts: int, key: Array) -> Weights:
    """Makes E equal copies; see `Method`."""
    del key
    return {name: _copies(w, num_experts) for name, w in weights.items()}


@dataclasses.dataclass(frozen=True)
class Noise(Method):
  """Copies with noise, which differs between experts.

  Attributes:
    scale: standard deviation of the normal noise, divided by that of the
      matrix. The noise is then truncated at two standard deviations.
  """

  scale: float = 0.1

  def __post_init__(self):
    bounds.within('scale', self.scale, 'upcycle.Copy adds no noise', above=0)

  def experts(self, weights: Weights, num_experts: int, key: Array) -> Weights:
    """Makes E copies with noise; see `Method.experts`."""
    made = {}
    for i, (name, w) in enumerate(sorted(weights.items())):
      copies = _copies(w, num_experts)
      deviation = jnp.std(copies, axis=(-2, -1), keepdims=True)
      noise = jax.random.truncated_normal(
        jax.random.fold_in(key, i), -2.0, 2.0, copies.shape, copies.dtype
      )
      made[name] = copies + self.scale * deviation * noise
    return made


@dataclasses.dataclass(frozen=True)
class Drop(Method):
  """Copies in which some hidden units of each expert are initialised again.

  Drop-Upcycling, Nakamura et al. (2025), https://arxiv.org/abs/2502.19261: each
  expert chooses hidden units at random. The weights into and out of these units
  are drawn from a normal distribution with the mean and the standard deviation
  of the weights that they replace.

  Attributes:
    share: share of the hidden units that are initialised again.
  """

  share: float = 0.5

  def __post_init__(self):
    kept = 'upcycle.Copy keeps all hidden units'
    bounds.within('share', self.share, kept, above=0, most=1)

  def experts(self, weights: Weights, num_experts: int, key: Array) -> Weights:
    """Makes E copies and initialises some units again; see `Method.experts`."""
    lead = next(iter(weights.values())).shape[:-2]
    F = next(w.shape[-1] for n, w in weights.items() if 'down' not in n)
    order = jax.random.uniform(key, (*lead, num_experts, F)).argsort()
    is_new = order.argsort() < round(self.share * F)
    made = {}
    for i, (name, w) in enumerate(sorted(weights.items())):
      copies = _copies(w, num_experts)
      mask = is_new[..., None] if 'down' in name else is_new[..., None, :]
      stats = {'axis': (-2, -1), 'keepdims': True, 'where': mask}
      mean, deviation = jnp.mean(copies, **stats), jnp.std(copies, **stats)
      noise = jax.random.normal(
        jax.random.fold_in(key, i + 1), copies.shape, copies.dtype
      )
      made[name] = jnp.where(mask, mean + deviation * noise, copies)
    return made


def _copies(w: Array, num_experts: int) -> Array:
  shape = (*w.shape[:-2], num_experts, *w.shape[-2:])
  return jnp.broadcast_to(w[..., None, :, :], shape)


def upcycle(
  dense: PyTree, sparse: PyTree, method: Method, key: Array
) -> PyTree:
  """Makes the parameters of a sparse model from those of a dense one.

  Args:
    dense: parameters with the paths of the sparse model, except that a layer
      that becomes sparse has 'feed_forward' instead of 'moe'.
    sparse: initial parameters of the sparse model; its routers are kept.
    method: `Copy`, `Noise` or `Drop`.
    key: random key.

  Returns:
    A tree like `sparse`.

  Raises:
    ValueError: if the two models do not fit; the message names the arrays.
  """
  given, wanted = restore.leaves(dense), restore.leaves(sparse)
  made, used, problems = {}, set(), []
  layers = {}
  for name in filter(_is_expert, wanted):
    layers.setdefault(name.rsplit('/', 1)[0], {})[name] = _dense_name(name)
  for i, (_, names) in enumerate(sorted(layers.items())):
    missing = [s for s in names.values() if s not in given]
    problems += [f'{s} is missing' for s in missing]
    if not missing:
      used |= set(names.values())
      E = wanted[min(names)].shape[-3]
      weights = {n: given[s] for n, s in names.items()}
      made |= method.experts(weights, E, jax.random.fold_in(key, i))
  for name in wanted.keys() - made.keys():
    if name.endswith('/moe/router'):
      made[name] = wanted[name]
    elif name in given:
      made[name] = given[name]
      used.add(name)
    elif not _is_expert(name):
      problems.append(f'{name} is missing')
  problems += [f'{n} has no use' for n in given.keys() - used]
  problems += [
    f'{n} would be {made[n].shape} and must be {wanted[n].shape}'
    for n in made
    if made[n].shape != wanted[n].shape
  ]
  if problems:
    raise ValueError(
      'the dense model does not fit: '
      + '; '.join(sorted(problems)[:4])
      + ': it'
      ' must have the sizes of the sparse one, D_FF = EXPERT_D_FF or DENSE_TWIN'
      ' as wide as one expert, and SHARED_D_FF = 0.'
    )
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: made[path_name(path)].astype(leaf.dtype), sparse
  )


def dense_placement(sparse: PyTree, whole: Sharding) -> restore.Placement:
  """Makes a function that gives the sharding of each array of a dense model.

  An array that both models have gets the sharding of the sparse model. A matrix
  that `upcycle` copies into experts is sharded like one expert, and also over
  the mesh axes of the expert dim. So no device holds the whole dense model.

  Args:
    sparse: shapes with shardings of the sparse model's parameters.
    whole: sharding of arrays that have no match in the sparse model.
  """
  wanted = restore.leaves(sparse)
  made_of = {
    _dense_name(n): leaf for n, leaf in wanted.items() if _is_expert(n)
  }

  def place(name: str, leaf: Shaped) -> Sharding:
    name, shape = name.removeprefix('params/'), tuple(leaf.shape)
    kept, expert = wanted.get(name), made_of.get(name)
    if kept is not None and kept.shape == shape:
      return kept.sharding
    if expert is not None and expert.shape[:-3] + expert.shape[-2:] == shape:
      return without_dim(expert, expert.ndim - 3)
    return whole  # `upcycle` will raise an error that names this array.

  return place


def _is_expert(name: str) -> bool:
  """Whether a path belongs to a matrix of experts, such as .../moe/w_up_EDF."""
  layer, _, leaf = name.rpartition('/')
  return layer.endswith('/moe') and leaf.startswith('w_')


def _dense_name(name: str) -> str:
  """Path of the dense matrix: .../feed_forward/w_up_DF for .../moe/w_up_EDF."""
  layer, leaf = name.rsplit('/', 1)
  stem, letters = leaf.rsplit('_', 1)
  layer = layer.removesuffix('moe') + 'feed_forward'
  return f'{layer}/{stem}_{letters.removeprefix("E")}'
