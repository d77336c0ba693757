"""Decoding: a model reads prompts into a cache and draws token after token."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from moe.infer import kv_cache, sampling
from moe.infer.prompts import Prompts, RowPrompt, bucket, stacked
from moe.parallel import multihost
from moe.types import Array, Cache, Outputs, PyTree, TokenBatch

# The modality of ids, as `IdSpace.modality` gives it.
Modality = Callable[[Array], Array]


class Functional(Protocol):
  """The pure functions of a model that decoding and scoring need."""

  def apply(
    self,
    params: PyTree,
    state: PyTree,
    batch: TokenBatch,
    rngs: dict | None,
    train: bool,
    cache: Cache | None = None,
  ) -> Outputs:
    """Runs the layers on a batch."""

  def head(
    self, params: PyTree, hidden: Array, section: str | None = None
  ) -> Array:
    """Float32 logits [.., V] of hidden [.., D]."""

  def restrict(self, logits: Array, targets: Array) -> Array:
    """The logits, but very small ones for ids outside the target's range."""

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Shapes and dtypes of `Cache.layers`, as a tree."""


def read_batch(
  tokens_BT: Array,
  length_B: Array,
  position_B: Array,
  block_BT: Array | None = None,
  modality: Modality = jnp.zeros_like,
  extras: dict[str, Array] | None = None,
) -> TokenBatch:
  """Makes a batch of tokens that the model reads, without targets.

  Args:
    tokens_BT: int32, right padded.
    length_B: int32, tokens of each row without padding. It is 0 for a row that
      is done; no expert processes the tokens of such a row.
    position_B: int32, position of each row's first token in its document.
    block_BT: int32, block of each token; None if there is no block. All tokens
      of a block must be in the same batch.
    modality: gives the modality of ids; by default all are text.
    extras: name -> further array [B, T, ...] that the model reads.
  """
  offset_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
  is_real_BT = offset_T < length_B[:, None]
  zeros_BT = jnp.zeros_like(tokens_BT)
  return TokenBatch(
    tokens=tokens_BT,
    targets=zeros_BT,
    loss_weights=zeros_BT.astype(jnp.float32),
    segment_ids=is_real_BT.astype(jnp.int32),
    positions=jnp.where(is_real_BT, position_B[:, None] + offset_T, 0),
    block_ids=zeros_BT if block_BT is None else block_BT,
    modality=modality(tokens_BT),
    extras=extras or {},
  )


def prefill(
  functional: Functional,
  params: PyTree,
  state: PyTree,
  prompts: Prompts,
  cache: Cache,
  modality: Modality = jnp.zeros_like,
  section: str | None = None,
) -> tuple[Array, Cache]:
  """Reads whole prompts into the cache.

  Returns:
    (logits_BV of the token after each prompt, the cache with T more entries).
    If `section` names a range of ids, V is the number of codes of this range.
  """
  zeros_B = jnp.zeros_like(prompts.length_B)
  T = prompts.tokens_BT.shape[1]
  batch = read_batch(
    prompts.tokens_BT,
    prompts.length_B,
    zeros_B,
    prompts.block_BT,
    modality,
    jax.tree.map(lambda extra_BS: extra_BS[:, :T], prompts.extras),
  )
  outputs = functional.apply(params, state, batch, None, False, cache)
  last_B11 = (prompts.length_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(outputs.hidden, last_B11, axis=1)[:, 0]
  return functional.head(params, hidden_BD, section), outputs.cache


def token_batch(
  token_B: Array,
  position_B: Array,
  is_done_B: Array,
  modality: Modality = jnp.zeros_like,
  extras: dict[str, Array] | None = None,
) -> TokenBatch:
  """Makes a batch with one token per row; rows that are done count as padding.

  No token is in a block.

  Args:
    token_B: int32, the tokens.
    position_B: int32, position of each token in its document.
    is_done_B: which rows are done.
    modality: gives the modality of ids; by default all are text.
    extras: name -> further array [B, S, ...] of all tokens of the documents.
  """
  rows_B = jnp.arange(len(token_B))
  return read_batch(
    token_B[:, None],
    jnp.where(is_done_B, 0, 1),
    position_B,
    modality=modality,
    extras=jax.tree.map(lambda e_BS: e_BS[rows_B, position_B][:, None], extras),
  )


def read_token(
  functional: Functional,
  params: PyTree,
  state: PyTree,
  batch: TokenBatch,
  cache: Cache,
  section: str | None = None,
) -> tuple[Array, Cache]:
  """Reads a batch of `token_batch` into the cache.

  Returns:
    (logits_BV of the next tokens, the cache with one more entry). If `section`
    names a range of ids, V counts only the codes of this range.
  """
  outputs = functional.apply(params, state, batch, None, False, cache)
  logits_BV = functional.head(params, outputs.hidden[:, 0], section)
  return logits_BV, outputs.cache


class _Carry(NamedTuple):
  """The state of the decoding loop; `logits_BV` belong to the next token."""

  step: Array
  logits_BV: Array
  cache: Cache
  jump_row_B: Array
  is_done_B: Array
  length_B: Array
  tokens_BT: Array


def _draw_token(
  carry: _Carry,
  key_B: Array,
  jumps: Array,
  settings: sampling.Sampling,
  eos_id: int,
) -> tuple[Array, _Carry]:
  """Draws one token per row; returns the tokens and the updated carry."""
  jump_BV = jumps[carry.jump_row_B].astype(jnp.int32)
  # Each row has its own key, so its draw does not depend on the other rows.
  key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, carry.step)
  token_B = sampling.draw(key_B, carry.logits_BV, settings, jump_BV >= 0)
  token_B = jnp.where(carry.is_done_B, eos_id, token_B)
  jump_B = jnp.take_along_axis(jump_BV, token_B[:, None], axis=1)[:, 0]
  carry = carry._replace(
    # The end mark has a jump of 0, so a finished row stays at its row of the
    # jump table.
    jump_row_B=carry.jump_row_B + jump_B,
    is_done_B=carry.is_done_B | (token_B == eos_id),
    length_B=jnp.where(carry.is_done_B, carry.length_B, carry.step + 1),
    tokens_BT=carry.tokens_BT.at[:, carry.step].set(token_B),
  )
  return token_B, carry


def build_writer(
  functional: Functional,
  settings: sampling.Sampling,
  eos_id: int,
  shardings: Cache | None = None,
  modality: Modality = jnp.zeros_like,
  section: str | None = None,
) -> Callable[..., tuple[Array, Array]]:
  """Builds the jitted function that samples the tokens after prompts.

  Args:
    functional: the model.
    settings: temperature, top-k, top-p.
    eos_id: the id that ends a document.
    shardings: shardings of the cache, or None.
    modality: gives the modality of ids; by default all are text.
    section: name of the range that begins at id 0, or None for all ids. With a
      range, the other ids get no logits, and no sample has one of them.

  Returns:
    `write(params, state, prompts, jumps, limit, width) -> (tokens_BT,
    length_B)`. jumps is a jump table of `forms`, int16 [rows, pieces]. limit is
    the largest number of tokens of a sample. width is the T of tokens_BT; it is
    static and at least limit. length_B counts the end mark if the sample has
    one.
  """

  def write(
    params: PyTree,
    state: PyTree,
    prompts: Prompts,
    jumps: Array,
    limit: Array,
    width: int,
  ) -> tuple[Array, Array]:
    num_rows, prompt_width = prompts.tokens_BT.shape
    layers = functional.cache_shapes(num_rows, prompt_width + width)
    cache = kv_cache.empty_cache(layers, shardings)
    logits_BV, cache = prefill(
      functional, params, state, prompts, cache, modality, section
    )
    # The model may have more logits than the vocabulary has pieces.
    unused = logits_BV.shape[1] - jumps.shape[1]
    jumps = jnp.pad(jumps, ((0, 0), (0, unused)), constant_values=-1)

    def is_open(carry: _Carry) -> Array:
      return (carry.step < limit) & ~carry.is_done_B.all()

    def one_token(carry: _Carry) -> _Carry:
      token_B, carry = _draw_token(
        carry, prompts.key_B, jumps, settings, eos_id
      )
      batch = token_batch(
        token_B,
        prompts.length_B + carry.step,
        carry.is_done_B,
        modality,
        prompts.extras,
      )
      logits_BV, cache = read_token(
        functional, params, state, batch, carry.cache, section
      )
      return carry._replace(
        step=carry.step + 1, logits_BV=logits_BV, cache=cache
      )

    start = _Carry(
      step=jnp.int32(0),
      logits_BV=logits_BV,
      cache=cache,
      jump_row_B=prompts.jump_row_B,
      is_done_B=prompts.length_B == 0,
      length_B=jnp.zeros((num_rows,), jnp.int32),
      tokens_BT=jnp.full((num_rows, width), eos_id, jnp.int32),
    )
    end = jax.lax.while_loop(is_open, one_token, start)
    return end.tokens_BT, end.length_B

  return jax.jit(write, static_argnums=5)


def generate(
  write: Callable[..., tuple[Array, Array]],
  params: PyTree,
  state: PyTree,
  prompts: Sequence[RowPrompt],
  limit: int,
  seed: int = 0,
  row_parts: int = 1,
  first_index: int = 0,
) -> list[list[int]]:
  """Writes one sample after each prompt.

  Args:
    write: the function that `build_writer` has returned.
    params: parameters of the model.
    state: model state, such as router biases.
    prompts: the prompts.
    limit: the largest number of tokens of a sample.
    seed: seed of the draws. A sample depends on the seed and on its index.
    row_parts: number of parts into which devices divide the rows; unused rows
      are added until the parts are equal.
    first_index: index of the first sample, for a list that is written in
      chunks.

  Returns:
    The ids written after each prompt, with the end mark if the sample has one.
  """
  width = bucket(limit)
  batch, jumps = stacked(prompts, width, seed, row_parts, first_index)
  written, counts = write(params, state, batch, jumps, np.int32(limit), width)
  written, counts = multihost.whole(written), multihost.whole(counts)
  return [
    row[:count].tolist()
    for _, row, count in zip(prompts, written, counts, strict=False)
  ]
