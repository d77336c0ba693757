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
from moe.train import spikes
from moe.train.state import TrainState
from moe.types import Array, Batch, Pair, PyTree


def check_batch(
  batch_size: int, num_microbatches: int, batch_shards: int
) -> None:
  """Raises ValueError unless a microbatch has whole rows for every device."""
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

  Blocks are groups of `rows_together` neighbouring rows. Microbatch i holds the
  blocks i, i + num_microbatches, and so on. So its content does not depend on
  the number of devices, and neither do noise and balance losses of global
  scope. Each device has some of its own rows in each microbatch, so no row
  moves between devices.

  Args:
    batch: the whole batch.
    num_microbatches: number of parts.
    rows_together: number of rows of a block: as many as a routing group spans.

  Raises:
    ValueError: if the batch is not divisible into such blocks.
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
  is_kept: Array,
) -> tuple[PyTree, optax.OptState]:
  """(params, opt_state) after the update, or unchanged if not `is_kept`."""
  updates, opt_state = optimizer.update(grads, ts.opt_state, ts.params)
  params = rounding.apply_updates(ts.params, updates, seed, ts.step)
  keep = lambda new, old: jnp.where(is_kept, new, old)
  return (
    jax.tree.map(keep, params, ts.params),
    jax.tree.map(keep, opt_state, ts.opt_state),
  )


def _update_from_host(
  optimizer: Optimizer,
  grads: PyTree,
  ts: TrainState,
  seed: int,
  is_kept: Array,
) -> tuple[PyTree, optax.OptState]:
  """Like `_update`, but updates one parameter at a time from host memory.

  A single update would need the moments of all parameters on the device at
  once. Here each iteration traces the whole update, but uses only the result
  for one parameter, and XLA removes the rest. The moments of a parameter are
  copied to the device only after the update of the parameter before it.
  """
  host, device = jax.memory.Space.Host, jax.memory.Space.Device
  names = jax.tree.leaves(storage.names(ts.params))
  params, params_tree = jax.tree.flatten(ts.params)
  state, state_tree = jax.tree.flatten(ts.opt_state)
  owners = shardings.owners(ts.opt_state, names)
  assert all(a.ndim == 0 or o for a, o in zip(state, owners, strict=True)), (
    'an optimizer state that belongs to no parameter would never be updated'
  )
  keep = lambda new, old: jnp.where(is_kept, new, old)
  new_params, new_state, done = [], list(state), is_kept
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
  """(gradients, (sums of terms, metrics), state) of a batch or a microbatch.

  The loss of a microbatch is its share of the loss of the whole batch, so
  `weights` are the weights of the whole batch. `dtype` is the format of the
  gradients.
  """

  def loss(params: PyTree):
    sums, state, metrics = objective.loss(params, carried, batch, key, True)
    total = objective.total(weighted(sums, weights))
    return total, ((sums, metrics), state)

  # We cast the parameters before we differentiate. Otherwise gradients would be
  # computed, stacked by the scan over layers, and reduced in float32.
  params = storage.cast(params, dtype)
  (_, (aux, state)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return grads, aux, state


def _accumulate(
  gradients: Callable, dtype: str, carried: PyTree, parts: Batch, key: Array
) -> tuple[PyTree, tuple[dict[str, Array], dict[str, Pair]], PyTree]:
  """Calls `gradients` on each microbatch, and adds up the results.

  Returns:
    (sums of gradients in `dtype`, sums of the terms and metrics, the carried
    state after the last microbatch).
  """

  def one(carried: PyTree, index: Array, part: Batch):
    part_key = jax.random.fold_in(key, index)
    grads, aux, carried = gradients(carried, part, part_key)
    return storage.cast(grads, dtype), aux, carried

  indices = jnp.arange(num_rows(parts), dtype=jnp.int32)
  first = jax.tree.map(lambda a: a[0], parts)
  shapes = jax.eval_shape(one, carried, indices[0], first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

  def body(carry: tuple[PyTree, PyTree], xs: tuple[Array, Batch]):
    total, carried = carry
    grads, aux, carried = one(carried, *xs)
    return (_add(total, (grads, aux)), carried), None

  ((grads, aux), state), _ = jax.lax.scan(
    body, (zeros, carried), (indices, parts)
  )
  return grads, aux, state


def _is_sound(ts: TrainState, kept: storage.Storage) -> Array:
  """Whether training can go on from a state, as a bool array.

  All checked arrays must be finite, and so must the sum of the squares of each
  parameter, because norms need it. The check only reads the state after the
  update. If it chose between the old and the new state, both would have to be
  in memory at once.
  """
  # Moments in host memory are not checked, since the check would have to copy
  # them to the device again.
  rest = (None if kept.optimizer_on_host else ts.opt_state, ts.state)
  # XLA for TPUs fuses the check with the update, so no array is read again. On
  # other platforms XLA would compute the update twice without a barrier.
  params, rest = jax.lax.platform_dependent(
    (ts.params, rest),
    tpu=lambda updated: updated,
    default=jax.lax.optimization_barrier,
  )
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
  spike_deviations: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Pair]]]:
  """Makes the step: gradients of microbatches, then one update if finite.

  Args:
    objective: what is trained.
    optimizer: see `moe.optim.optimizers`. Its `storage` has the formats of the
      gradients and of their sums over microbatches, and the memory of the
      optimizer's state.
    schedule: learning rate by step, for the metrics.
    seed: seed of the run. The key of step s is fold_in(seed, s). The bits of
      stochastic rounding are a hash of seed, s and the place of each number.
    num_microbatches: parts of the batch, which are computed one by one.
    spike_deviations: a step is skipped if its gradient norm lies so many
      standard deviations above the mean of the steps before, see
      `moe.train.spikes`; 0 for no such rule.

  Returns:
    (state, batch) -> (state, metrics), metrics as (sum, weight). If the loss or
    the gradient is not finite, no parameter and no state of the model or the
    optimizer changes, and the metric 'skipped' is 1. A spike changes only the
    step number and the statistics of gradient norms, and the metric 'spike' is
    1. If the state after the update is not finite, the metric 'broken' is 1,
    and training must not go on from this state.
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
    # Terms of factor 0 count, too: if one is not finite, the step is skipped.
    loss = sum(
      objective.coefficients[name] * s / jnp.maximum(w, 1.0)
      for name, (s, w) in terms.items()
    )
    grad_norm = optax.tree.norm(storage.to_float32(grads))
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    is_kept, judged, watched = is_finite, {}, {}
    if spike_deviations:
      is_spike, limit, norms = spikes.judge(
        ts.norms, grad_norm, spike_deviations
      )
      is_kept &= ~is_spike
      watched = {'norms': norms}
      judged = {
        'spike': (is_spike.astype(jnp.float32), one),
        'grad_norm_limit': (limit, one),
      }
    update = _update_from_host if kept.optimizer_on_host else _update
    params, opt_state = update(optimizer, grads, ts, seed, is_kept)
    metrics = {
      **metrics,
      **terms,
      'loss': (loss, one),
      'grad_norm': (grad_norm, one),
      'learning_rate': (jnp.asarray(schedule(ts.step), jnp.float32), one),
      'skipped': (1.0 - is_finite.astype(jnp.float32), one),
      **judged,
    }
    state = jax.tree.map(
      lambda new, old: jnp.where(is_kept, new, old),
      objective.update(state),
      ts.state,
    )
    new = ts._replace(
      step=ts.step + 1,
      params=params,
      opt_state=opt_state,
      state=state,
      **watched,
    )
    metrics['broken'] = 1.0 - _is_sound(new, kept).astype(jnp.float32), one
    return new, metrics

  return train_step


def make_eval_step(
  objective: Objective,
) -> Callable[[TrainState, Batch], dict[str, Pair]]:
  """Makes the evaluation step, in which routers drop no token and add no noise.

  It maps (state, batch) to the terms and metrics, as name -> (sum, weight).

  Args:
    objective: what is trained.
  """

  def eval_step(ts: TrainState, batch: Batch):
    sums, _, metrics = objective.loss(ts.params, ts.state, batch, None, False)
    return {**metrics, **weighted(sums, objective.weights(batch))}

  return eval_step
