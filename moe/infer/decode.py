"""Decoding: a model reads prompts into a cache and writes token after token."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from moe.data import examples
from moe.infer import kv_cache, sampling
from moe.types import Array, Cache, Outputs, PyTree, TokenBatch

# The modality of ids, as `IdSpace.modality` gives it.
Modality = Callable[[Array], Array]
# The id before every document. Rows are padded with it too; no token sees that.
START_ID = 0
# The widths of prompts and samples are rounded up to a power of two, at least
# this one, so that few programs are compiled.
SMALLEST_BUCKET = 16


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
    """Reads a batch."""

  def head(
    self, params: PyTree, hidden: Array, section: str | None = None
  ) -> Array:
    """Float32 logits [.., V] of hidden [.., D]."""

  def restrict(self, logits: Array, targets: Array) -> Array:
    """Logits of which only those in the range of the target compete."""

  def cache_shapes(self, batch_size: int, length: int) -> PyTree:
    """Tree of `jax.ShapeDtypeStruct` for `Cache.layers`."""


class RowPrompt(NamedTuple):
  """What one sample begins with.

  Attributes:
    tokens: ids, without the start id; may be empty.
    table: jump table, as `forms` makes it.
    blocks: block of each token, 0 for none; () if there is no block.
    extras: further arrays that the model reads, by name: the values of the
      prompt's tokens and then, as far as they are not 0, those of the tokens
      that are written. All prompts have the same names.
  """

  tokens: Sequence[int]
  table: np.ndarray
  blocks: Sequence[int] = ()
  extras: Mapping[str, np.ndarray] = {}


class Prompts(NamedTuple):
  """The rows to be continued, one per sample.

  Attributes:
    tokens_BT: int32, right padded; each row starts with `START_ID`.
    length_B: int32, tokens of each row without padding; 0 for an unused row.
    jump_row_B: int32, the row of the jump table at which each sample starts.
    key_B: typed PRNG keys.
    block_BT: int32, block of the place of each token; None if all are 0.
    extras: name -> further array [B, S, ...] that the model reads; dim S covers
      the places of the prompt and the sample.
  """

  tokens_BT: Array
  length_B: Array
  jump_row_B: Array
  key_B: Array
  block_BT: Array | None = None
  extras: dict[str, Array] = {}


def bucket(length: int, smallest: int = SMALLEST_BUCKET) -> int:
  """The smallest power of two that is at least `length` and `smallest`."""
  return 1 << (int(max(length, smallest)) - 1).bit_length()


def read_batch(
  tokens_BT: Array,
  length_B: Array,
  position_B: Array,
  block_BT: Array | None = None,
  modality: Modality = jnp.zeros_like,
  extras: dict[str, Array] | None = None,
) -> TokenBatch:
  """A batch of new tokens to read, with nothing to predict.

  Args:
    tokens_BT: int32, right padded.
    length_B: int32, how many tokens of each row are real; 0 for a row that is
      done, whose tokens no expert processes.
    position_B: int32, position of each row's first token in its document.
    block_BT: int32, block of each place; None if there is none. The places of a
      block must be read together.
    modality: of ids; by default all are text.
    extras: further arrays [B, T, ...] that the model reads, by name.
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
  """Reads whole prompts.

  Returns:
    (logits_BV of the token after each prompt, the cache with T more entries).
    With a section, V are the codes of that range of ids.
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
  """A batch of one token a row, in no block; a row that is done is padding.

  Args:
    token_B: int32, the tokens.
    position_B: int32, place of each in its document.
    is_done_B: which rows are done.
    modality: of ids; by default all are text.
    extras: further arrays [B, S, ...] of all places of the documents, by name.
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
  """Reads a `token_batch`.

  Returns:
    (logits_BV of the token after it, the cache with one more entry). With a
    section, V are the codes of that range of ids.
  """
  outputs = functional.apply(params, state, batch, None, False, cache)
  logits_BV = functional.head(params, outputs.hidden[:, 0], section)
  return logits_BV, outputs.cache


class _Carry(NamedTuple):
  """The carry of the loop; `logits_BV` are those of the token to draw next."""

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
  """Draws and stores one token per row, which the model then reads."""
  jump_BV = jumps[carry.jump_row_B].astype(jnp.int32)
  # The key of a row, and so its draw, depends on no other row of the batch.
  key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, carry.step)
  token_B = sampling.draw(key_B, carry.logits_BV, settings, jump_BV >= 0)
  token_B = jnp.where(carry.is_done_B, eos_id, token_B)
  jump_B = jnp.take_along_axis(jump_BV, token_B[:, None], axis=1)[:, 0]
  carry = carry._replace(
    # The end mark jumps by 0: a row that is done stays where it is.
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
) -> Callable[..., tuple[Array, Array]]:
  """The jitted loop that continues prompts.

  Args:
    functional: the model.
    settings: temperature, top-k, top-p.
    eos_id: the id that ends a document.
    shardings: of the cache, or None.
    modality: of ids; by default all are text.

  Returns:
    `write(params, state, prompts, jumps, limit, width) -> (tokens_BT,
    length_B)`. jumps is int16 [rows, pieces] as `forms` makes it, limit is the
    largest number of tokens to write, and width (static, at least limit) is the
    T of tokens_BT.
    length_B counts the end mark, if the sample has one.
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
      functional, params, state, prompts, cache, modality
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
        functional, params, state, batch, carry.cache
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
) -> list[list[int]]:
  """Writes one sample after each prompt.

  Args:
    write: as `build_writer` made it.
    params: of the model.
    state: of the model.
    prompts: what the samples begin with.
    limit: the largest number of tokens to write.
    seed: a sample depends on it and on the index of its prompt in the list.
    row_parts: number of parts into which devices divide the rows; unused rows
      are added until the parts are equal.

  Returns:
    The ids written after each prompt, with the end mark if the sample has one.
  """
  num_rows = math.ceil(len(prompts) / row_parts) * row_parts
  lengths = np.zeros(num_rows, np.int32)
  lengths[: len(prompts)] = [1 + len(p.tokens) for p in prompts]
  tokens = np.full((num_rows, bucket(lengths.max())), START_ID, np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, 1 : lengths[row]] = prompt.tokens
  block_BT = None
  if any(prompt.blocks for prompt in prompts):
    block_BT = np.zeros_like(tokens)
  for row, prompt in enumerate(prompts):
    if prompt.blocks:
      block_BT[row, : lengths[row]] = examples.place_blocks(
        np.array([0, *prompt.blocks]), np.array([*prompt.blocks, 0])
      )
  num_places = tokens.shape[1] + bucket(limit)
  extras = {
    name: _of_places([p.extras[name] for p in prompts], num_rows, num_places)
    for name in prompts[0].extras
  }
  # The tables are stacked, each one once, even if several prompts share it.
  starts, stacked, num_jump_rows = {}, [], 0
  for table in (prompt.table for prompt in prompts):
    if id(table) not in starts:
      starts[id(table)] = num_jump_rows
      stacked.append(table)
      num_jump_rows += len(table)
  jump_rows = np.zeros(num_rows, np.int32)
  jump_rows[: len(prompts)] = [starts[id(p.table)] for p in prompts]
  jumps = np.full(
    (bucket(num_jump_rows), prompts[0].table.shape[1]), -1, np.int16
  )
  jumps[:num_jump_rows] = np.concatenate(stacked)
  rows = np.arange(num_rows, dtype=np.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
  written, counts = write(
    params,
    state,
    Prompts(tokens, lengths, jump_rows, keys, block_BT, extras),
    jumps,
    np.int32(limit),
    bucket(limit),
  )
  written, counts = jax.device_get((written, counts))
  return [
    row[:count].tolist()
    for _, row, count in zip(prompts, written, counts, strict=False)
  ]


def _of_places(
  values: Sequence[np.ndarray], num_rows: int, num_places: int
) -> np.ndarray:
  """[rows, places, ...] of values of tokens; place 0 reads no token."""
  shape = (num_rows, num_places, *values[0].shape[1:])
  found = np.zeros(shape, values[0].dtype)
  for row, own in enumerate(values):
    found[row, 1 : 1 + len(own)] = own[: num_places - 1]
  return found
