"""Language modelling: next-token prediction with a model's balance losses."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from moe.models.functional import Functional
from moe.objectives.objective import Objective
from moe.train.loss import cross_entropy
from moe.types import Array, Batch, Pair, PyTree


def language_model(
  functional: Functional,
  load_balance: float = 0.01,
  router_z: float = 1e-3,
  router_losses: Sequence[tuple[str, float]] = (),
  logits_z: float = 0.0,
  num_chunks: int = 1,
) -> Objective:
  """Next-token prediction with a sparse model's balance losses.

  Args:
    functional: the model's pure functions.
    load_balance: coefficient of the load-balance loss.
    router_z: coefficient of the router's z-loss.
    router_losses: (name, coefficient) of further losses that the router gives:
      'local_entropy' and 'global_entropy' (LIMoE), 'importance' and
      'noisy_load' (gates.NoisyTopK); without one they are reported alone.
    logits_z: coefficient of the squared log-partition of the logits (PaLM).
    num_chunks: pieces in which the loss is computed.

  Returns:
    The objective; its term 'cross_entropy' is in nats per weighted token.
  """
  coefficients = {
    'cross_entropy': 1.0,
    'load_balance': load_balance,
    'router_z': router_z,
    **dict(router_losses),
    'logits_z': logits_z,
  }

  def loss_fn(
    params: PyTree, state: PyTree, batch: Batch, key: Array | None, train: bool
  ) -> tuple[dict[str, Pair], PyTree, dict[str, Pair]]:
    rngs = None
    if key is not None:
      router_key, dropout_key = jax.random.split(key)
      rngs = {'router': router_key, 'dropout': dropout_key}
    outputs = functional.apply(params, state, batch, rngs, train)
    nats, log_z_squared = cross_entropy(
      lambda hidden: functional.head(params, hidden),
      outputs.hidden,
      batch.targets,
      batch.loss_weights,
      num_chunks,
      functional.layout,
    )
    weight = batch.loss_weights.sum()
    terms = {
      'cross_entropy': (nats, weight),
      'logits_z': (log_z_squared, weight),
    }
    metrics = dict(outputs.metrics)
    # A loss that has no factor here is still reported.
    for name, pair in outputs.losses.items():
      (terms if name in coefficients else metrics)[name] = pair
    return terms, outputs.state, metrics

  def weights_fn(batch: Batch) -> dict[str, Array]:
    weight = batch.loss_weights.sum()
    tokens = jnp.sum(batch.segment_ids > 0, dtype=jnp.float32)
    return {
      'cross_entropy': weight,
      'logits_z': weight,
      'load_balance': tokens,
      'router_z': tokens,
      **{name: tokens for name, _ in router_losses},
    }

  return Objective(
    functional.init,
    loss_fn,
    weights_fn,
    coefficients,
    functional.update,
  )
