"""A language model draws pictures code by code, or reads them as blocks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.infer import decode, kv_cache, sampling
from moe.infer.decode import Functional, Modality
from moe.infer.prompts import START_ID, Prompts, bucket
from moe.parallel import multihost
from moe.types import Array, Cache, Extra, PyTree

# Name of the id range of image codes, and number of their modality.
SECTION, IMAGE = 'image', 1
# The block id of the tokens of a picture that is read.
_BLOCK = 1


class Canvas(NamedTuple):
  """How a picture lies in a document.

  Attributes:
    begin: id of the first code.
    grid: (rows, columns) of codes.
    mask: id that replaces each token of a hidden condition.
    extras: further arrays that the model reads. `row` and `column` count from 1
      for codes, and are 0 for other tokens.
  """

  begin: int
  grid: tuple[int, int]
  mask: int
  extras: tuple[Extra, ...] = ()

  @property
  def num_codes(self) -> int:
    """Number of codes of a picture."""
    return self.grid[0] * self.grid[1]

  def extras_of(
    self, first_B: np.ndarray, num_places: int
  ) -> dict[str, np.ndarray]:
    """Name -> further array [B, S, ...] of documents with a picture.

    Rows and columns are numbered from 1 at the codes; all else is 0.

    Args:
      first_B: for each document, the index of the place that reads the first
        code.
      num_places: S.
    """
    found = {}
    row, column = np.divmod(np.arange(self.num_codes), self.grid[1])
    for name, shape, dtype in self.extras:
      values_BS = np.zeros((len(first_B), num_places, *shape), dtype)
      known = {'row': row + 1, 'column': column + 1}.get(name)
      for values_S, first in zip(values_BS, first_B, strict=True):
        if known is not None:
          values_S[first : first + self.num_codes] = known
      found[name] = values_BS
    return found


class Seen(NamedTuple):
  """Pictures in the form in which a model reads them.

  Attributes:
    tokens: int32 [N, codes], ids of codes; masks for a model that reads
      patches, or where a picture is hidden.
    extras: name -> further array [N, codes, ...], such as the patches of
      `image.patches_of`.
  """

  tokens: Array
  extras: dict[str, Array] = {}

  def rows(self, rows: np.ndarray | slice) -> 'Seen':
    """Some of the pictures."""
    return jax.tree.map(lambda array: array[rows], self)


def guided(logits_BV: Array, guidance: Array) -> Array:
  """Classifier-free guidance: u + s (c - u), as logits [B / 2, V].

  Ho and Salimans (2022), https://arxiv.org/abs/2207.12598. Here s = 1 gives the
  conditional model c, and s = 0 gives the unconditional model u.

  Args:
    logits_BV: B / 2 rows with the condition, then B / 2 rows without it.
    guidance: s.
  """
  with_BV, without_BV = jnp.split(logits_BV, 2)
  return without_BV + guidance * (with_BV - without_BV)


def build_artist(
  functional: Functional,
  settings: sampling.Sampling,
  canvas: Canvas,
  modality: Modality,
  shardings: Cache | None = None,
) -> Callable[..., Array]:
  """Builds the jitted function that draws pictures after their prompts.

  Args:
    functional: the model.
    settings: temperature, top-k, top-p; they act on the guided logits.
    canvas: how a picture lies in a document.
    modality: gives the modality of ids.
    shardings: shardings of the cache, or None.

  Returns:
    `draw(params, state, prompts, given, num_given, guidance) -> codes`, int32
    [pictures, codes]. If `prompts` has two rows for each picture, the rows of
    the second half have no condition. Both halves share one batch and one
    cache. The first `num_given` codes of each picture are copied from `given`,
    [pictures, codes].
  """

  def draw(
    params: PyTree,
    state: PyTree,
    prompts: Prompts,
    given: Array,
    num_given: Array,
    guidance: Array,
  ) -> Array:
    rows, width = prompts.tokens_BT.shape
    count = len(given)
    layers = functional.cache_shapes(rows, width + canvas.num_codes)
    logits, cache = decode.prefill(
      functional,
      params,
      state,
      prompts,
      kv_cache.empty_cache(layers, shardings),
      modality,
      SECTION,
    )
    is_done = jnp.zeros(rows, bool)

    def one_code(step: Array, carry: tuple) -> tuple:
      logits, cache, codes = carry
      if rows > count:
        logits = guided(logits, guidance)
      keys = jax.vmap(jax.random.fold_in, (0, None))(
        prompts.key_B[:count], step
      )
      drawn = sampling.draw(keys, logits, settings)
      code = jnp.where(step < num_given, given[:, step], drawn)
      batch = decode.token_batch(
        jnp.tile(code + canvas.begin, rows // count),
        prompts.length_B + step,
        is_done,
        modality,
        prompts.extras,
      )
      logits, cache = decode.read_token(
        functional, params, state, batch, cache, SECTION
      )
      return logits, cache, codes.at[:, step].set(code)

    carry = logits, cache, jnp.zeros_like(given)
    return jax.lax.fori_loop(0, canvas.num_codes, one_code, carry)[2]

  return jax.jit(draw)


def draw(
  artist: Callable[..., Array],
  canvas: Canvas,
  prompts: Sequence[Sequence[int]],
  guidance: float,
  seed: int,
  given: np.ndarray | None = None,
  row_parts: int = 1,
  first_index: int = 0,
) -> np.ndarray:
  """Draws one picture after each prompt.

  Args:
    artist: the function of `build_artist`, with parameters and state bound.
    canvas: how a picture lies in a document.
    prompts: for each picture, the ids of its sentence.
    guidance: scale s of classifier-free guidance, see `guided`. With 1, only
      the conditional model is used, which takes half the time.
    seed: seed of the draws. A picture depends on the seed and on its index.
    given: first codes of each picture, [pictures, n]; None for none.
    row_parts: number of parts into which devices divide the rows.
    first_index: index of the first picture, for a list that is drawn in chunks.

  Returns:
    int32 [pictures, codes].
  """
  count = -(-len(prompts) // row_parts) * row_parts
  whole = [*prompts, *[prompts[0]] * (count - len(prompts))]
  if guidance != 1:
    whole += [[canvas.mask] * len(prompt) for prompt in whole]
  length_B = np.array([1 + len(prompt) for prompt in whole], np.int32)
  tokens_BT = np.full((len(whole), bucket(length_B.max())), START_ID, np.int32)
  for tokens_T, prompt in zip(tokens_BT, whole, strict=True):
    tokens_T[1 : 1 + len(prompt)] = prompt
  num_places = tokens_BT.shape[1] + canvas.num_codes
  numbers = first_index + np.arange(len(whole), dtype=np.uint32)
  first = np.zeros((count, canvas.num_codes), np.int32)
  if given is not None:
    first[: len(given), : given.shape[1]] = given
  made = artist(
    Prompts(
      tokens_BT,
      length_B,
      np.zeros_like(length_B),
      jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers),
      extras=canvas.extras_of(length_B, num_places),
    ),
    first,
    np.int32(0 if given is None else given.shape[1]),
    np.float32(guidance),
  )
  return multihost.whole(made)[: len(prompts)]


def read_block(
  functional: Functional,
  params: PyTree,
  state: PyTree,
  canvas: Canvas,
  seen: Seen,
  room: int,
  section: str | None = None,
) -> tuple[Array, Cache]:
  """Reads pictures as blocks.

  Args:
    functional: the model.
    params: parameters of the model.
    state: state of the model.
    canvas: how a picture lies in a document.
    seen: the pictures.
    room: number of further entries of the cache, for later tokens.
    section: range of ids whose logits are wanted; None for all ids.

  Returns:
    (logits_BV of the token after each picture, the cache).
  """
  B, P = seen.tokens.shape
  tokens = jnp.pad(seen.tokens, ((0, 0), (1, 0)), constant_values=START_ID)
  # A mask has the modality of the code that it hides.
  is_code = jnp.broadcast_to(jnp.arange(P + 1) > 0, tokens.shape)
  extras = canvas.extras_of(np.ones(B, int), P + 1)
  for name, values in seen.extras.items():
    rest = [(0, 0)] * (values.ndim - 2)
    extras[name] = jnp.pad(values, [(0, 0), (1, 0), *rest])
  prompts = Prompts(
    tokens,
    jnp.full(B, P + 1, jnp.int32),
    jnp.zeros(B, jnp.int32),
    jnp.zeros(B, jnp.int32),
    jnp.full_like(tokens, _BLOCK),
    extras,
  )
  layers = functional.cache_shapes(B, P + 1 + room)
  return decode.prefill(
    functional,
    params,
    state,
    prompts,
    kv_cache.empty_cache(layers),
    lambda _: IMAGE * is_code.astype(jnp.int32),
    section,
  )
