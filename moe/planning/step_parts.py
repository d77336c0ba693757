"""Times the parts of a training step one by one, to show where its time goes.

Each part is a program of its own, forward and backward, on random activations
of the sizes in the step. The rest of the step are norms, residual sums, the
checks of the new state, and what XLA gains by fusing the parts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.evaluate.timing import Timed, clock
from moe.layers.attention import mask_spec
from moe.layers.moe_layer import TokenInfo
from moe.models import functional
from moe.models.decoder import Decoder
from moe.optim import rounding
from moe.optim.optimizers import Optimizer
from moe.train import loss, state
from moe.types import Array, PyTree, TokenBatch


def random_batch(batch_size: int, length: int, vocab_size: int) -> TokenBatch:
  """A batch of random tokens; each row is one document."""
  shape = (batch_size, length)
  text = np.random.default_rng(0).integers(
    vocab_size, size=(batch_size, length + 1), dtype=np.int32
  )
  ones, zeros = np.ones(shape, np.int32), np.zeros(shape, np.int32)
  return TokenBatch(
    tokens=text[:, :-1],
    targets=text[:, 1:],
    loss_weights=np.ones(shape, np.float32),
    segment_ids=ones,
    positions=np.broadcast_to(np.arange(length, dtype=np.int32), shape),
    block_ids=zeros,
    modality=zeros,
  )


def timed(
  model: Decoder, optimizer: Optimizer, ts: state.TrainState, batch: TokenBatch
) -> list[Timed]:
  """Times attention, networks, table with head, and optimizer of a step.

  Args:
    model: a model whose blocks are all equal.
    optimizer: updates the parameters.
    ts: state of the run.
    batch: random tokens.

  Raises:
    ValueError: if the model has several kinds of blocks.
  """
  block, number = model.only_block()
  attention, network = block.layers()
  inputs = ()
  if block.has_experts:
    valid = batch.segment_ids > 0
    inputs = TokenInfo(batch.tokens, batch.modality, valid), True
  shape = (*batch.tokens.shape, model.d_model)
  x_BTD = jax.random.normal(jax.random.key(0), shape, block.dtype)
  mask = mask_spec(batch, None)

  def of_layers(name: str, layer: Any, *inputs: Any) -> Timed:
    seconds = clock(_layer(layer, x_BTD, *inputs))
    return Timed(f'{name} of {number} layers', lambda: number * seconds())

  return [
    of_layers('attention', attention, mask, None),
    of_layers('experts' if block.has_experts else 'network', network, *inputs),
    Timed('table and head', clock(_head(model, ts.params, x_BTD, batch))),
    Timed('optimizer', clock(_update(optimizer, ts))),
  ]


def _layer(layer: Any, x_BTD: Array, *inputs: Any) -> Callable:
  """Makes a function that computes a layer and all its gradients."""
  init = jax.jit(lambda key: layer.init(key, x_BTD, *inputs))
  params, carried, _ = functional.unboxed(init(jax.random.key(1)))

  @jax.jit
  def both_ways(params: PyTree, x_BTD: Array) -> PyTree:
    def apply(params: PyTree, x_BTD: Array) -> Array:
      variables = {'params': params, 'state': carried}
      outputs, _ = layer.apply(variables, x_BTD, *inputs, mutable=['state'])
      return outputs[0] if isinstance(outputs, tuple) else outputs

    y_BTD, vjp = jax.vjp(apply, params, x_BTD)
    return vjp(y_BTD)

  return functools.partial(both_ways, params, x_BTD)


def _head(
  model: Decoder, params: PyTree, x_BTD: Array, batch: TokenBatch
) -> Callable:
  """Makes a function for the loss of embeddings plus given activations."""
  names = {'embedding', 'output'} & set(params)
  tables = {name: params[name] for name in names}

  @jax.jit
  def both_ways(tables: PyTree, x_BTD: Array) -> PyTree:
    def nats(tables: PyTree, x_BTD: Array) -> Array:
      x_BTD += tables['embedding']['table'].astype(x_BTD.dtype)[batch.tokens]
      args = x_BTD, batch.targets, batch.loss_weights
      return loss.cross_entropy(model.head_of(tables), *args)[0]

    return jax.value_and_grad(nats, argnums=(0, 1))(tables, x_BTD)

  return functools.partial(both_ways, tables, x_BTD)


def _update(optimizer: Optimizer, ts: state.TrainState) -> Callable:
  """Makes a function that updates the parameters by gradients."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params: PyTree, opt_state: PyTree, grads: PyTree) -> PyTree:
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return rounding.apply_updates(params, updates, 0, ts.step), opt_state

  copy = functools.partial(jax.tree.map, jnp.copy)
  held = [(copy(ts.params), copy(ts.opt_state))]

  def one() -> PyTree:
    held[0] = update(*held[0], ts.params)
    return held[0]

  return one
