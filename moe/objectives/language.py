"""Language modelling: next-token prediction with a model's balance losses."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe import axes, bounds
from moe.modalities.ids import RANGES
from moe.models.functional import Functional
from moe.objectives.objective import Facts, Measure, Objective, shapes_of
from moe.train.loss import Section, cross_entropy, cross_entropy_of_sections
from moe.types import (
  MODALITIES,
  PLACE_FIELDS,
  Array,
  Extra,
  Field,
  Pair,
  PyTree,
  TokenBatch,
  following,
)

_logger = logging.getLogger(__name__)


def fields(
  batch_size: int, sequence_length: int, extras: Sequence[Extra] = ()
) -> TokenBatch:
  """Declares the arrays of a batch: [B, T], and extras [B, T, ...]."""
  shape = (batch_size, sequence_length)
  integers = Field(shape, jnp.int32, (axes.BATCH, axes.LENGTH))
  numbers = Field(shape, jnp.float32, (axes.BATCH, axes.LENGTH))
  declared = {name: integers for name in PLACE_FIELDS}
  return TokenBatch(
    **{**declared, 'loss_weights': numbers},
    extras={
      name: Field(
        (*shape, *dims), dtype, (axes.BATCH, axes.LENGTH, *(None for _ in dims))
      )
      for name, dims, dtype in extras
    },
  )


def batch_shapes(
  batch_size: int, sequence_length: int, extras: Sequence[Extra] = ()
) -> TokenBatch:
  """Shapes of the arrays of a batch that has `extras`."""
  return shapes_of(fields(batch_size, sequence_length, extras))


def _bits_per_char(sums: dict[str, Pair], facts: Facts) -> float | None:
  """Computes bits per character; None if the facts do not suffice.

  The facts of held-out data have the number of all scored characters ('chars').
  The facts of training data have the mean number of characters per scored token
  ('chars_per_token').
  """
  nats, weight = sums['cross_entropy']
  if 'chars' in facts:
    return float(nats) / math.log(2) / facts['chars']
  if 'chars_per_token' in facts:
    mean = float(nats / np.maximum(weight, 1e-9))
    return mean / math.log(2) / facts['chars_per_token']
  return None


BITS_PER_CHAR = Measure('bits_per_char', 'bits/char', _bits_per_char)


def _num_tokens(batch: TokenBatch) -> int:
  """Number of tokens of a batch on the host, without padding."""
  return int(np.count_nonzero(batch.segment_ids))


def _missing_warner(
  coefficients: dict[str, float],
) -> Callable[[dict[str, Pair]], None]:
  """Makes a function that warns if a router loss has a factor but no value."""
  own = {'logits_z', 'ahead'}
  weighed = [
    name
    for name, factor in coefficients.items()
    if factor and name not in own and not name.startswith('cross_entropy')
  ]
  warned = set()

  def warn(given: dict[str, Pair]) -> None:
    for name in weighed:
      if name not in given and name not in warned:
        warned.add(name)  # JAX traces the loss more than once.
        _logger.info(
          f'warning: the router gives no loss {name}, so its factor'
          f' {coefficients[name]} does nothing: set {name.upper()} to 0, or'
          ' choose another router.'
        )

  return warn


def _names_by_modality(functional: Functional) -> dict[int, str]:
  """Number of a modality -> name of its loss; {} if all ids share a softmax."""
  if functional.ids is None:
    return {}
  ranges = [name for name, size in functional.ids.sizes.items() if size]
  found = dict.fromkeys(RANGES[name] for name in ranges)
  return {number: f'cross_entropy_{MODALITIES[number]}' for number in found}


def _target_weights(batch: TokenBatch, functional: Functional) -> Array:
  """Weights [B, T] of the targets, or [B, T, W] if there are several softmaxes.

  The first of the W columns is for all targets. Each other column is for the
  targets of one modality.
  """
  if functional.ids is None:
    return batch.loss_weights
  modality_BT = functional.ids.modality(batch.targets)
  columns = [
    jnp.where(modality_BT == number, batch.loss_weights, 0)
    for number in _names_by_modality(functional)
  ]
  return jnp.stack([batch.loss_weights, *columns], axis=-1)


def _coefficients(
  first: dict[str, float],
  router_losses: Sequence[tuple[str, float]],
  last: dict[str, float],
) -> dict[str, float]:
  """Name -> coefficient of each term, without losses of single modalities.

  Raises:
    OutOfRange: if a factor is not finite, or if the factor of a loss that must
      be minimised is negative.
  """
  for name, factor in router_losses:
    # These factors may be negative: a negative factor maximises the loss.
    bounds.within('router_losses', factor, f'the factor of {name}')
  for name, factor in (first | last).items():
    bounds.within(
      name, factor, 'a factor of a loss that is made small', least=0
    )
  return {'cross_entropy': 1.0, **first, **dict(router_losses), **last}


def _ahead_weights(batch: TokenBatch) -> Array:
  """Weight [B, T] of the token after the next one.

  It is 0 if that token is in another document.
  """
  is_same = following(batch.segment_ids) == batch.segment_ids
  return following(batch.loss_weights) * is_same.astype(jnp.float32)


def _cross_entropy(
  functional: Functional, params: PyTree
) -> tuple[Callable, Any]:
  """Returns (function of `moe.train.loss`, its first argument)."""
  ids = functional.ids
  if ids is None:
    return cross_entropy, lambda hidden: functional.head(params, hidden)
  return cross_entropy_of_sections, [
    Section(functional.head_of(params, name), ids.begin(name))
    for name, size in ids.sizes.items()
    if size
  ]


def _weights(
  functional: Functional,
  router_losses: Sequence[tuple[str, float]],
  batch: TokenBatch,
) -> dict[str, Array]:
  """Name -> weight of each term; see `Objective.weights`."""
  of_modality = _names_by_modality(functional)
  weight = batch.loss_weights.sum()
  columns = ()
  if of_modality:
    columns = _target_weights(batch, functional).sum(axis=(0, 1))[1:]
  # The weight of the router's losses is the number of tokens that are not
  # padding.
  tokens = jnp.sum(batch.segment_ids > 0, dtype=jnp.float32)
  return {
    'cross_entropy': weight,
    'logits_z': weight,
    'ahead': _ahead_weights(batch).sum(),
    'load_balance': tokens,
    'router_z': tokens,
    **{name: tokens for name, _ in router_losses},
    **dict(zip(of_modality.values(), columns, strict=True)),
  }


def language_model(
  functional: Functional,
  shape: tuple[int, int],
  load_balance: float = 0.01,
  router_z: float = 1e-3,
  router_losses: Sequence[tuple[str, float]] = (),
  logits_z: float = 0.0,
  num_chunks: int = 1,
  ahead: float = 0.3,
) -> Objective:
  """Next-token prediction with a sparse model's balance losses.

  Args:
    functional: the model's pure functions; a batch has the extras that the
      model reads.
    shape: (B, T) of a batch.
    load_balance: coefficient of the load-balance loss, at least 0.
    router_z: coefficient of the router's z-loss, at least 0.
    router_losses: (name, coefficient) of further losses of the router:
      'local_entropy' and 'global_entropy' (LIMoE), 'importance' and
      'noisy_load' (gates.NoisyTopK). A loss without a coefficient is reported
      but not trained.
    logits_z: coefficient of the squared log-partition of the logits (PaLM),
      at least 0.
    num_chunks: number of chunks of a sequence. The loss is computed for one
      chunk after the other, so that fewer logits are in memory.
    ahead: coefficient of the loss of the token after the next one, at least 0
      (DeepSeek-V3's lambda). Only training has this loss, and only if the model
      predicts this token.

  Returns:
    The objective. Its term 'cross_entropy' is in nats per weighted token. Its
    score is bits per character. If each range of ids has its own softmax, each
    modality has a further term for its targets, such as 'cross_entropy_text'.
    Only `modalities.by_modality` gives these terms a coefficient above 0.
  """
  coefficients = _coefficients(
    {'load_balance': load_balance, 'router_z': router_z},
    router_losses,
    {'logits_z': logits_z, 'ahead': ahead},
  )
  of_modality = _names_by_modality(functional)
  coefficients |= dict.fromkeys(of_modality.values(), 0.0)
  chunks = 'chunks in which logits and loss are computed'
  bounds.at_least(1, 'num_chunks', num_chunks, chunks)
  warn_of_missing = _missing_warner(coefficients)

  def loss(
    params: PyTree,
    state: PyTree,
    batch: TokenBatch,
    key: Array | None,
    train: bool,
  ) -> tuple[dict[str, Array], PyTree, dict[str, Pair]]:
    rngs = None
    if key is not None:
      router_key, dropout_key = jax.random.split(key)
      rngs = {'router': router_key, 'dropout': dropout_key}
    outputs = functional.apply(params, state, batch, rngs, train)
    score = functools.partial(
      *_cross_entropy(functional, params),
      num_chunks=num_chunks,
      layout=functional.layout,
    )
    nats, log_z_squared = score(
      outputs.hidden, batch.targets, _target_weights(batch, functional)
    )
    by_modality = {}
    if of_modality:
      by_modality = dict(zip(of_modality.values(), nats[1:], strict=True))
      nats, log_z_squared = nats[0], log_z_squared[0]
    if train and outputs.metrics:  # A dense model has no metrics.
      warn_of_missing(outputs.losses)
    sums = {'cross_entropy': nats, 'logits_z': log_z_squared, **by_modality}
    if outputs.ahead is not None:
      sums['ahead'], _ = score(
        outputs.ahead, following(batch.targets), _ahead_weights(batch)
      )
    metrics = dict(outputs.metrics)
    for name, pair in outputs.losses.items():
      if name in coefficients:
        sums[name] = pair[0]
      else:  # A loss without a coefficient is still reported.
        metrics[name] = pair
    return sums, outputs.state, metrics

  return Objective(
    functional.init,
    lambda: fields(*shape, functional.extras),
    loss,
    functools.partial(_weights, functional, router_losses),
    coefficients,
    BITS_PER_CHAR,
    functional.update,
    'tokens',
    _num_tokens,
  )
