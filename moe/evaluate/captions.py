"""Scores sentences about pictures; a label is scored by its sentences."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe import bounds
from moe.infer import decode, pictures
from moe.infer.decode import Functional, Modality
from moe.infer.pictures import Canvas, Seen
from moe.train.loss import token_nats
from moe.types import Array, Cache, PyTree

_STEP = 4
# Sentences have ids of text, so ids of other ranges need no logits.
_SECTION = 'text'


def build_listener(
  functional: Functional,
  canvas: Canvas,
  modality: Modality,
) -> Callable[..., Array]:
  """Builds the jitted function that scores sentences about pictures.

  A picture is read once, as a block. Its cache is copied for each sentence.

  Args:
    functional: the model.
    canvas: how a picture lies in a document.
    modality: gives the modality of ids.

  Returns:
    `score(params, state, seen, captions_KT, length_K) -> nats_BK`. `seen` are
    the pictures. captions_KT are the ids of K sentences with their end marks,
    right padded. length_K are their numbers of ids, end marks included.
  """

  def score(
    params: PyTree,
    state: PyTree,
    seen: Seen,
    captions_KT: Array,
    length_K: Array,
  ) -> Array:
    B, P = seen.tokens.shape
    K, T = captions_KT.shape
    logits_BV, cache = pictures.read_block(
      functional, params, state, canvas, seen, T, _SECTION
    )
    cache = Cache(
      jnp.repeat(cache.segment_ids, K, axis=0),
      jnp.repeat(cache.block_ids, K, axis=0),
      cache.index,
      jax.tree.map(lambda a: jnp.repeat(a, K, axis=-4), cache.layers),
    )
    tokens_RT = jnp.tile(captions_KT, (B, 1))
    length_R = jnp.tile(length_K, B)
    batch = decode.read_batch(
      tokens_RT,
      length_R,
      jnp.full(B * K, P + 1, jnp.int32),
      modality=modality,
      extras={
        name: jnp.zeros((B * K, T, *shape), dtype)
        for name, shape, dtype in canvas.extras
      },
    )
    outputs = functional.apply(params, state, batch, None, False, cache)
    after_RTV = functional.head(params, outputs.hidden, _SECTION)
    first_R1V = jnp.repeat(logits_BV, K, axis=0)[:, None]
    logits_RTV = jnp.concatenate([first_R1V, after_RTV[:, :-1]], axis=1)
    nats_RT, _ = token_nats(logits_RTV, tokens_RT)
    is_real_RT = jnp.arange(T) < length_R[:, None]
    return jnp.sum(nats_RT, axis=1, where=is_real_RT).reshape(B, K)

  return jax.jit(score)


def padded(captions: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """(ids [K, T], length [K]) of captions, as `build_listener` reads them.

  T is a multiple of `_STEP`, so that few programs are compiled.
  """
  lengths = np.array([len(ids) for ids in captions], np.int32)
  longest = -(-int(lengths.max()) // _STEP) * _STEP
  made = np.zeros((len(captions), longest), np.int32)
  for row, ids in zip(made, captions, strict=True):
    row[: len(ids)] = ids
  return made, lengths


def check_alpha(alpha: float) -> None:
  """Raises ValueError if `alpha` of `information_gain` is out of range."""
  bounds.within('alpha', alpha, 'share of the expectation', least=0, most=1)


def information_gain(
  nats_BLM: np.ndarray, nats_LM: np.ndarray, alpha: float
) -> np.ndarray:
  """Gains log p(c | x) - alpha log p(c), [B, L], of labels c for pictures x.

  This is the score of the information-gain captioner (Xu et al. 2023,
  https://arxiv.org/abs/2311.17072). It subtracts what the language model
  expects without a picture. The probability of a label is the mean over its
  sentences.

  Args:
    nats_BLM: nats of each of M sentences of each label, given a picture.
    nats_LM: nats of the same sentences without a picture.
    alpha: factor of log p(c), from 0 to 1.
  """
  check_alpha(alpha)
  log_mean = lambda nats: (
    np.logaddexp.reduce(-nats, axis=-1) - np.log(nats.shape[-1])
  )
  return log_mean(nats_BLM) - alpha * log_mean(nats_LM)
