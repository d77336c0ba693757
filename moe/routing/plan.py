"""What a router is given and what it decides, for groups of tokens.

Every array carries the routing groups G in front. A plan is a list of R rows,
each one (token, expert, weight); R is static, so that routers in which tokens
choose experts and routers in which experts choose tokens give the same kind of
thing.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from moe.types import Array, Pair, PyTree


class RouterInputs(NamedTuple):
  """What a router may look at.

  Attributes:
    x_GMD: tokens.
    logits_GME: float32 router logits.
    token_ids_GM: int32 vocabulary ids.
    modality_GM: int32, as in `Batch`.
    valid_GM: bool, False for padding, which is never routed.
  """

  x_GMD: Array
  logits_GME: Array
  token_ids_GM: Array
  modality_GM: Array
  valid_GM: Array


class RoutingPlan(NamedTuple):
  """Who goes where.

  Attributes:
    token_GR: int32 in [0, M), the token of each row.
    expert_GR: int32 in [0, E), the expert of each row.
    weight_GR: float32, what the expert's output is multiplied with.
    valid_GR: bool, False for a row that does not exist.
    rows_GMA: int32 in [0, R), the rows of each token: the inverse of token_GR.
      Row order is priority: where capacity runs out, later rows are dropped.
    state: the router's state, carried and not trained.
    losses: name -> (sum, weight) over valid tokens, unscaled.
    statistics: name -> (sum, weight).
  """

  token_GR: Array
  expert_GR: Array
  weight_GR: Array
  valid_GR: Array
  rows_GMA: Array
  state: PyTree
  losses: dict[str, Pair]
  statistics: dict[str, Pair]


class Router(Protocol):
  """Decides for each token which experts see it."""

  num_active: int

  def route(
    self, inputs: RouterInputs, state: PyTree, keys_G: Array, train: bool
  ) -> RoutingPlan:
    """Makes the plan; all float32; `keys_G` are keys by global group index."""
    ...


def rows_of_choices(
  expert_GMA: Array, weight_GMA: Array, valid_GM: Array
) -> tuple[Array, Array, Array, Array, Array]:
  """Rows of a plan in which every token chooses A experts.

  First choices of all tokens come before second choices, as in GShard
  (https://arxiv.org/abs/2006.16668, algorithm 1), so that a full expert turns
  away second choices first, and later tokens before earlier ones.

  Args:
    expert_GMA: int32 in [0, E).
    weight_GMA: float32.
    valid_GM: bool.

  Returns:
    (token_GR, expert_GR, weight_GR, valid_GR, rows_GMA) with R = A * M.
  """
  G, M, A = expert_GMA.shape
  flat = lambda a_GMA: a_GMA.swapaxes(1, 2).reshape(G, A * M)
  tokens_M = jnp.arange(M, dtype=jnp.int32)
  token_GR = jnp.broadcast_to(jnp.tile(tokens_M, A), (G, A * M))
  rows_MA = tokens_M[:, None] + M * jnp.arange(A, dtype=jnp.int32)
  valid_GMA = jnp.broadcast_to(valid_GM[..., None], (G, M, A))
  return (
    token_GR,
    flat(expert_GMA),
    flat(weight_GMA),
    flat(valid_GMA),
    jnp.broadcast_to(rows_MA, (G, M, A)),
  )


def group_keys(key: Array, index_G: Array) -> Array:
  """Keys of groups by their index in the whole batch.

  The noise of a group is then the same on one device and on eight.
  """
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_G)
