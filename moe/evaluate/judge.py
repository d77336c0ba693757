"""An independent network that says what a picture shows; it judges drawings.

It reads pixels, and shares neither parameters nor seed nor architecture with
the tokenizer and the language model. Its accuracy on real pictures limits the
score that drawn pictures can reach.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe import atomic_files
from moe.types import Array, PyTree

# Channels after each halving of height and width, and number of features.
_WIDTHS, _FEATURES = (48, 96, 128), 128
_RATE, _SEED = 2e-3, 20_011
# Largest number of pictures in a training step.
BATCH = 64
# An attribute with this name tells files apart, not what they show.
_FILE = 'file'
# An attribute with more values than this is not learned. It is like a name.
_MAX_VALUES = 256


class Judge(NamedTuple):
  """A trained judge.

  Attributes:
    params: parameters of the network.
    values: attribute -> its values, in the order of the network's outputs.
  """

  params: PyTree
  values: dict[str, list]


def attributes_of(facts: Sequence[Mapping]) -> dict[str, list]:
  """Attribute -> its values, for each attribute that a judge can learn.

  Args:
    facts: facts of each training picture, by attribute. A picture may lack
      some attributes.
  """
  names = dict.fromkeys(name for one in facts for name in one if name != _FILE)
  found, partitions = {}, set()
  for name in names:
    column = [one.get(name) for one in facts]
    if any(isinstance(value, list | dict) for value in column):
      continue
    values = sorted({v for v in column if v is not None}, key=str)
    # The number and the name of a class divide the pictures in the same way, so
    # only one of the two attributes is kept.
    partition = tuple(
      dict((v, i) for i, v in enumerate(dict.fromkeys(column)))[v]
      for v in column
    )
    if 1 < len(values) <= _MAX_VALUES and partition not in partitions:
      partitions.add(partition)
      found[name] = values
  return found


def targets_of(
  facts: Sequence[Mapping], values: Mapping[str, list]
) -> dict[str, np.ndarray]:
  """Attribute -> int32 [N], index of each picture's value; -1 if missing."""
  found = {}
  for name, known in values.items():
    number = {value: i for i, value in enumerate(known)}
    found[name] = np.array(
      [number.get(one.get(name), -1) for one in facts], np.int32
    )
  return found


def train(
  pictures: np.ndarray, facts: Sequence[Mapping], epochs: int = 4
) -> Judge:
  """Trains a judge.

  Args:
    pictures: uint8 [N, Y, X, 3]; height and width are equal.
    facts: facts of each picture, by attribute.
    epochs: number of passes over the pictures. Each pass leaves out the rest
      that fills no batch.

  Raises:
    ValueError: if no attribute can be learned.
  """
  values = attributes_of(facts)
  if not values:
    raise ValueError(
      'A judge needs an attribute with at least two values in the facts of its'
      ' pictures, got none: score other pictures.'
    )
  targets = targets_of(facts, values)
  rng = np.random.default_rng(_SEED)
  params = _init(rng, pictures.shape[1], {k: len(v) for k, v in values.items()})
  size = min(BATCH, len(pictures))
  steps = epochs * (len(pictures) // size)
  optimizer = optax.adamw(optax.cosine_decay_schedule(_RATE, steps), 0.9, 0.99)
  opt_state = optimizer.init(params)

  def loss(params: PyTree, pixels: Array, wanted: dict[str, Array]) -> Array:
    logits, _ = _apply(params, pixels)
    total = jnp.zeros((), jnp.float32)
    for name, target in wanted.items():
      nats = optax.softmax_cross_entropy_with_integer_labels(
        logits[name], jnp.maximum(target, 0)
      )
      is_known = (target >= 0).astype(jnp.float32)
      total += jnp.sum(nats * is_known) / jnp.maximum(is_known.sum(), 1.0)
    return total

  @jax.jit
  def step(params: PyTree, opt_state: PyTree, pixels: Array, wanted: dict):
    grads = jax.grad(loss)(params, pixels, wanted)
    # optax mixes dtypes, which strict promotion forbids.
    with jax.numpy_dtype_promotion('standard'):
      updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  for _ in range(epochs):
    order = rng.permutation(len(pictures))
    for first in range(0, len(order) - size + 1, size):
      rows = order[first : first + size]
      wanted = {name: target[rows] for name, target in targets.items()}
      params, opt_state = step(params, opt_state, pictures[rows], wanted)
  return Judge(params, values)


def of_cache(
  cache_dir: str | os.PathLike,
  content: str,
  pictures: np.ndarray,
  facts: Sequence[Mapping],
  epochs: int,
) -> Judge:
  """The judge that `train` makes, from the cache if it was trained before.

  Args:
    cache_dir: directory of all caches.
    content: hash of the pictures and their facts.
    pictures: see `train`.
    facts: see `train`.
    epochs: see `train`.
  """
  code = pathlib.Path(__file__).read_text(encoding='utf-8')
  key = json.dumps([content, epochs, code])
  name = hashlib.sha256(key.encode()).hexdigest()
  path = pathlib.Path(cache_dir, 'judges', f'{name}.npz')
  if path.exists():
    with np.load(path) as arrays:
      return Judge(dict(arrays), attributes_of(facts))
  made = train(pictures, facts, epochs)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic_files.replacing(path) as file:
    np.savez(file, **jax.device_get(made.params))
  return made


def judge(
  judge: Judge, pictures: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """(attribute -> index of the likeliest value [N], features [N, F])."""
  apply = jax.jit(_apply)
  answers, features = {name: [] for name in judge.values}, []
  for first in range(0, len(pictures), BATCH):
    chunk = pictures[first : first + BATCH]
    whole = np.resize(chunk, (BATCH, *chunk.shape[1:]))
    logits, hidden = jax.device_get(apply(judge.params, whole))
    features.append(hidden[: len(chunk)])
    for name, one in logits.items():
      answers[name].append(one[: len(chunk)].argmax(axis=1))
  return (
    {name: np.concatenate(parts) for name, parts in answers.items()},
    np.concatenate(features),
  )


def right(
  judge_: Judge, answers: Mapping[str, np.ndarray], facts: Sequence[Mapping]
) -> dict[str, np.ndarray]:
  """Attribute -> float [N]: 1 if the answer agrees with the facts, else 0.

  The value is NaN if the picture lacks the attribute, or has a value of it that
  no training picture had. 'all' has the least value that is not NaN.
  """
  targets = targets_of(facts, judge_.values)
  found = {
    name: np.where(target < 0, np.nan, answers[name] == target)
    for name, target in targets.items()
  }
  return {**found, 'all': np.nanmin(np.stack([*found.values()]), axis=0)}


def _init(
  rng: np.random.Generator, size: int, classes: Mapping[str, int]
) -> PyTree:
  """Initial parameters, by the method of He et al. (2015)."""

  def matrix(*shape: int) -> np.ndarray:
    scale = (2 / np.prod(shape[:-1])) ** 0.5
    return (scale * rng.standard_normal(shape)).astype(np.float32)

  params, before = {}, 3
  for number, width in enumerate(_WIDTHS):
    # Four pixels become one, with four times the channels.
    params[f'conv_{number}'] = matrix(3, 3, 4 * before, width)
    before = width
  side = -(-size // 2 ** len(_WIDTHS))
  params['features'] = matrix(side * side * before, _FEATURES)
  for name, count in classes.items():
    params[f'to_{name}'] = matrix(_FEATURES, count)
  return params


def _apply(params: PyTree, pixels: Array) -> tuple[dict[str, Array], Array]:
  """(logits by attribute, features [B, F]) of uint8 [B, Y, X, 3]."""
  x = pixels.astype(jnp.float32) / 127.5 - 1.0
  # Height and width are halved several times, so both are padded.
  more = -x.shape[1] % 2 ** len(_WIDTHS)
  x = jnp.pad(x, ((0, 0), (0, more), (0, more), (0, 0)))
  for number in range(len(_WIDTHS)):
    B, Y, X, C = x.shape
    x = x.reshape(B, Y // 2, 2, X // 2, 2, C).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(B, Y // 2, X // 2, 4 * C)
    x = jax.lax.conv_general_dilated(
      x,
      params[f'conv_{number}'],
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    x = jax.nn.relu(x)
  features = jax.nn.relu(x.reshape(len(x), -1) @ params['features'])
  logits = {
    name.removeprefix('to_'): features @ matrix
    for name, matrix in params.items()
    if name.startswith('to_')
  }
  return logits, features
