"""One training step, and one evaluation step, as pure functions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from moe.train.objective import Objective
from moe.train.state import TrainState
from moe.types import Array, Batch, Pair


def check_batch(
  batch_size: int, num_microbatches: int, batch_shards: int
) -> None:
  """Raises ValueError unless every device gets whole rows of a microbatch."""
  if batch_size % (num_microbatches * batch_shards):
    raise ValueError(
      f'BATCH_SIZE={batch_size} must divide by NUM_MICROBATCHES='
      f'{num_microbatches} times the {batch_shards} devices that share the'
      ' batch: change one of them.'
    )


def split_microbatches(
  batch: Batch, num_microbatches: int, batch_shards: int
) -> Batch:
  """[B, T] arrays to [num_microbatches, B / num_microbatches, T].

  Each device keeps its own consecutive rows in each microbatch, so nothing
  travels and routing groups hold the same tokens as in the undivided batch.

  Raises:
    ValueError: if the batch does not divide.
  """
  n, s = num_microbatches, batch_shards
  B = batch.tokens.shape[0]
  check_batch(B, n, s)

  def split(a_BT):
    parts = a_BT.reshape(s, n, B // (n * s), *a_BT.shape[1:])
    return parts.swapaxes(0, 1).reshape(n, B // n, *a_BT.shape[1:])

  return jax.tree.map(split, batch)


def _add(a, b):
  return jax.tree.map(jnp.add, a, b)


def make_train_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: Callable[[Array], Array],
  seed: int,
  num_microbatches: int = 1,
  batch_shards: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Pair]]]:
  """The step: gradients over microbatches, one update, nothing non-finite kept.

  Args:
    objective: what is trained.
    optimizer: see `moe.optim.optimizers`.
    schedule: learning rate by step, for the metrics.
    seed: of the run; the randomness of step s is fold_in(seed, s).
    num_microbatches: parts of the batch, one after the other.
    batch_shards: devices that share the batch.

  Returns:
    (state, batch) -> (state, metrics), metrics as (sum, weight). If the loss or
    the gradient is not finite, parameters and optimizer stay as they were, the
    step counts all the same, and the metric 'skipped' is 1.
  """

  def gradients(ts: TrainState, batch: Batch, key: Array, totals):
    """Gradient of the part of the whole batch's loss that this part makes."""

    def loss(params):
      terms, state, metrics = objective.loss_fn(
        params, ts.state, batch, key, True
      )
      total = sum(
        objective.coefficients[name] * pair[0] / jnp.maximum(totals[name], 1.0)
        for name, pair in terms.items()
      )
      return total, (terms, state, metrics)

    (_, aux), grads = jax.value_and_grad(loss, has_aux=True)(ts.params)
    terms, state, metrics = aux
    return grads, (terms, metrics), state

  def accumulate(ts: TrainState, batch: Batch, key: Array):
    totals = objective.weights_fn(batch)
    if num_microbatches == 1:
      return gradients(ts, batch, key, totals)
    parts = split_microbatches(batch, num_microbatches, batch_shards)
    indices = jnp.arange(num_microbatches, dtype=jnp.int32)

    def one(index, part):
      part_key = jax.random.fold_in(key, index)
      return gradients(ts, part, part_key, totals)

    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(one, indices[0], first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

    def body(carry, xs):
      grads, sums, state = one(*xs)
      return _add(carry, (grads, sums)), state

    (grads, sums), states = jax.lax.scan(body, zeros, (indices, parts))
    return grads, sums, jax.tree.map(lambda a: a[-1], states)

  def train_step(ts: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), ts.step)
    grads, (terms, metrics), state = accumulate(ts, batch, key)
    one = jnp.ones((), jnp.float32)
    loss = sum(
      objective.coefficients[name] * s / jnp.maximum(w, 1.0)
      for name, (s, w) in terms.items()
    )
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, ts.opt_state, ts.params)
    params = optax.apply_updates(ts.params, updates)
    keep = lambda new, old: jnp.where(is_finite, new, old)
    metrics = {
      **metrics,
      **terms,
      'loss': (loss, one),
      'grad_norm': (grad_norm, one),
      'learning_rate': (jnp.asarray(schedule(ts.step), jnp.float32), one),
      'skipped': (1.0 - is_finite.astype(jnp.float32), one),
    }
    new = TrainState(
      ts.step + 1,
      jax.tree.map(keep, params, ts.params),
      jax.tree.map(keep, opt_state, ts.opt_state),
      jax.tree.map(keep, state, ts.state),
    )
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
    terms, _, metrics = objective.loss_fn(
      ts.params, ts.state, batch, None, False
    )
    return {**metrics, **terms}

  return eval_step
