"""Computes answers of our models: their logits and their greedy text."""

import jax
import numpy as np

from moe.infer import decode
from moe.models.functional import Functional


def answer(model, params, state, tokens, num_greedy=0):
  """(logits [B, T, V], the tokens that greedy decoding adds to row 0)."""
  functional = Functional(model)

  @jax.jit
  def forward(params, state, tokens_BT, length_B):
    batch = decode.read_batch(tokens_BT, length_B, 0 * length_B)
    outputs = functional.apply(params, state, batch, None, False)
    return functional.head(params, outputs.hidden)

  length = tokens.shape[1]
  padded = np.zeros((len(tokens), length + num_greedy), np.int32)
  padded[:, :length] = tokens
  call = lambda n: np.asarray(
    forward(params, state, padded, np.full(len(tokens), n, np.int32))
  )
  logits = call(length)[:, :length]
  for place in range(length, length + num_greedy):
    padded[0, place] = call(place)[0, place - 1].argmax()
  return logits, padded[0, length:]
