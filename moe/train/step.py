"""One training step, and one evaluation step, as pure functions."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from moe.objectives.objective import Objective, num_rows, weighted
from moe.optim import rounding, storage
from moe.optim.optimizers import Optimizer
from moe.parallel import shardings
from moe.train.state import TrainState
from moe.types import Array, Batch, Pair, PyTree


def check_batch(
  batch_size: int, num_microbatches: int, batch_shards: int
) -> None:
  """Raises ValueError unless every device gets whole rows of a microbatch."""
  if batch_size % (num_microbatches * batch_shards):
    raise ValueError(
      f'BATCH_SIZE={batch_size} must be divisible by NUM_MICROBATCHES='
      f'{num_microbatches} times the {batch_shards} devices that share the'
      ' batch: change one of them.'
    )


def split_microbatches(
  batch: Batch, num_microbatches: int, rows_together: int = 1
) -> Batch:
  """Splits [B, ...] arrays into [num_microbatches, B / num_microbatches, ...].

  Microbatch i holds every num_microbatches-th block of rows from block i on.
  Its content does not depend on the number of devices, and so neither do noise
  and the global scope of balance. Yet every device has rows of its own in each
  microbatch, so that no row moves between devices.

  Args:
    batch: the whole.
    num_microbatches: how many.
    rows_together: rows of a block, which stay neighbours: the rows that a
      routing group spans.

  Raises:
    ValueError: if the batch does not divide.
  """
  n, q = num_microbatches, rows_together
  B = num_rows(batch)
  if B % (n * q):
    raise ValueError(
      f'BATCH_SIZE={B} must be divisible by NUM_MICROBATCHES={n} times the {q}'
      ' rows of a routing group: change one of them, or lower GROUP_SIZE.'
    )

  def split(a: Array) -> Array:
    blocks = a.reshape(B // (n * q), n, q, *a.shape[1:])
    return blocks.swapaxes(0, 1).reshape(n, B // n, *a.shape[1:])

  return jax.tree.map(split, batch)


def _add(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(jnp.add, a, b)


def _update(
  optimizer: Optimizer,
  grads: PyTree,
  ts: TrainState,
  seed: int,
  is_finite: Array,
) -> tuple[PyTree, optax.OptState]:
  """(params, opt_state) after the update; the old ones if it is not finite."""
  updates, opt_state = optimizer.update(grads, ts.opt_state, ts.params)
  params = rounding.apply_updates(ts.params, updates, seed, ts.step)
  keep = lambda new, old: jnp.where(is_finite, new, old)
  return (
    jax.tree.map(keep, params, ts.params),
    jax.tree.map(keep, opt_state, ts.opt_state),
  )


def _update_from_host(
  optimizer: Optimizer,
  grads: PyTree,
  ts: TrainState,
  seed: int,
  is_finite: Array,
) -> tuple[PyTree, optax.OptState]:
  """`_update` with a state that waits on the host, one parameter after another.

  One update of everything would bring the moments of all parameters to the
  device together. Here each turn of the loop traces the whole update and uses
  one parameter of it, and XLA leaves out the rest. The moments of a parameter
  set out when the parameter before it is done.
  """
  host, device = jax.memory.Space.Host, jax.memory.Space.Device
  names = jax.tree.leaves(storage.names(ts.params))
  params, params_tree = jax.tree.flatten(ts.params)
  state, state_tree = jax.tree.flatten(ts.opt_state)
  owners = shardings.owners(ts.opt_state, names)
  assert all(a.ndim == 0 or o for a, o in zip(state, owners, strict=True)), (
    'state of no parameter would never be updated'
  )
  keep = lambda new, old: jnp.where(is_finite, new, old)
  new_params, new_state, done = [], list(state), is_finite
  for i, (name, p) in enumerate(zip(names, params, strict=True)):
    mine = [
      j for j, owner in enumerate(owners) if owner == name and state[j].ndim
    ]
    arrived, turn = list(state), [state[j] for j in mine]
    turn, _ = jax.lax.optimization_barrier((turn, done))
    for j, a in zip(mine, turn, strict=True):
      arrived[j] = a
    arrived = [jax.device_put(a, device) if a.ndim else a for a in arrived]
    updates, moved = optimizer.update(
      grads, state_tree.unflatten(arrived), ts.params
    )
    update, moved = jax.tree.leaves(updates)[i], jax.tree.leaves(moved)
    done = keep(rounding.add(p, update, seed, ts.step, i), p)
    new_params.append(done)
    for j, a in enumerate(moved):
      if j in mine:
        new_state[j] = jax.device_put(keep(a, arrived[j]), host)
      elif not a.ndim:
        new_state[j] = keep(a, state[j])
  return params_tree.unflatten(new_params), state_tree.unflatten(new_state)


def _gradients(
  objective: Objective,
  dtype: str,
  params: PyTree,
  weights: dict[str, Array],
  carried: PyTree,
  batch: Batch,
  key: Array,
) -> tuple[PyTree, tuple[dict[str, Array], dict[str, Pair]], PyTree]:
  """(gradients, (sums of terms, metrics), state) of a batch or a part of it.

  The gradients are those of the part's share in the loss of the whole batch,
  whose terms have the `weights`; `dtype` is their format.
  """

  def loss(params: PyTree):
    sums, state, metrics = objective.loss(params, carried, batch, key, True)
    total = sum(
      objective.coefficients[name] * s / jnp.maximum(weight, 1.0)
      for name, (s, weight) in weighted(sums, weights).items()
      if objective.coefficients[name]  # no backward pass for nothing
    )
    return total, ((sums, metrics), state)

  # The cast comes before the differentiation: else gradients would be made,
  # stacked by the scan over layers, and reduced in float32.
  params = storage.cast(params, dtype)
  (_, (told, state)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return grads, told, state


def _accumulate(
  gradients: Callable, dtype: str, carried: PyTree, parts: Batch, key: Array
) -> tuple[PyTree, tuple[dict[str, Array], dict[str, Pair]], PyTree]:
  """Sums of `gradients` of microbatches, one after the other, in a format."""

  def one(carried: PyTree, index: Array, part: Batch):
    part_key = jax.random.fold_in(key, index)
    grads, told, carried = gradients(carried, part, part_key)
    return storage.cast(grads, dtype), told, carried

  indices = jnp.arange(num_rows(parts), dtype=jnp.int32)
  first = jax.tree.map(lambda a: a[0], parts)
  shapes = jax.eval_shape(one, carried, indices[0], first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

  def body(carry: tuple[PyTree, PyTree], xs: tuple[Array, Batch]):
    total, carried = carry
    grads, told, carried = one(carried, *xs)
    return (_add(total, (grads, told)), carried), None

  ((grads, told), state), _ = jax.lax.scan(
    body, (zeros, carried), (indices, parts)
  )
  return grads, told, state


def _is_sound(ts: TrainState, kept: storage.Storage) -> Array:
  """Whether training can go on from a state: a bool.

  The squares of parameters must be finite too, or no norm of them is. What is
  checked is the result, and not the update before it is kept: both states would
  have to be in memory together.
  """
  # Moments that wait on the host would have to come back for this.
  rest = (None if kept.optimizer_on_host else ts.opt_state, ts.state)
  # The barrier keeps the update from being computed once more for the check.
  params, rest = jax.lax.optimization_barrier((ts.params, rest))
  checked = [
    jnp.isfinite(jnp.sum(jnp.square(a.astype(jnp.float32))))
    for a in jax.tree.leaves(params)
  ]
  checked += [
    jnp.all(jnp.isfinite(a))
    for a in jax.tree.leaves(rest)
    if jnp.issubdtype(a.dtype, jnp.inexact)
  ]
  return functools.reduce(jnp.logical_and, checked)


def make_train_step(
  objective: Objective,
  optimizer: Optimizer,
  schedule: Callable[[Array], Array],
  seed: int,
  num_microbatches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Pair]]]:
  """The step: gradients over microbatches, then one update if all is finite.

  Args:
    objective: what is trained.
    optimizer: see `moe.optim.optimizers`; its storage holds the formats of the
      gradients and of their sums over microbatches, and where its state waits.
    schedule: learning rate by step, for the metrics.
    seed: of the run. The key of step s is fold_in(seed, s); the bits of
      stochastic rounding are a hash of both.
    num_microbatches: parts of the batch, one after the other.

  Returns:
    (state, batch) -> (state, metrics), metrics as (sum, weight). If the loss or
    the gradient is not finite, parameters, optimizer and carried state stay as
    they were, the step counts all the same, and the metric 'skipped' is 1. If
    what the update has made is not finite, the metric 'broken' is 1, and
    nothing may go on from that state.
  """
  kept = optimizer.storage

  def train_step(ts: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), ts.step)
    weights = objective.weights(batch)
    gradients = functools.partial(
      _gradients, objective, kept.grads, ts.params, weights
    )
    if num_microbatches == 1:
      grads, (sums, metrics), state = gradients(ts.state, batch, key)
    else:
      parts = split_microbatches(
        batch, num_microbatches, objective.rows_together
      )
      grads, (sums, metrics), state = _accumulate(
        gradients, kept.sums, ts.state, parts, key
      )
    one, terms = jnp.ones((), jnp.float32), weighted(sums, weights)
    loss = sum(
      objective.coefficients[name] * s / jnp.maximum(w, 1.0)
      for name, (s, w) in terms.items()
    )
    grad_norm = optax.tree.norm(storage.to_float32(grads))
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    update = _update_from_host if kept.optimizer_on_host else _update
    params, opt_state = update(optimizer, grads, ts, seed, is_finite)
    metrics = {
      **metrics,
      **terms,
      'loss': (loss, one),
      'grad_norm': (grad_norm, one),
      'learning_rate': (jnp.asarray(schedule(ts.step), jnp.float32), one),
      'skipped': (1.0 - is_finite.astype(jnp.float32), one),
    }
    state = jax.tree.map(
      lambda new, old: jnp.where(is_finite, new, old),
      objective.update(state),
      ts.state,
    )
    new = TrainState(ts.step + 1, params, opt_state, state)
    metrics['broken'] = 1.0 - _is_sound(new, kept).astype(jnp.float32), one
    return new, metrics

  return train_step


def make_eval_step(
  objective: Objective,
) -> Callable[[TrainState, Batch], dict[str, Pair]]:
  """(state, batch) -> terms and metrics as (sum, weight), dropless, noiseless.

  Args:
    objective: what is trained.
  """

  def eval_step(ts: TrainState, batch: Batch):
    sums, _, metrics = objective.loss(ts.params, ts.state, batch, None, False)
    return {**metrics, **weighted(sums, objective.weights(batch))}

  return eval_step
