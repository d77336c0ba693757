"""What a router is given and what it decides, for groups of tokens.

Every array carries the routing groups G in front. A plan is a list of R rows,
each one (token, expert, weight); R is static, so that routers in which tokens
choose experts and routers in which experts choose tokens give the same kind of
thing.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from moe import bounds
from moe.types import Array, Pair

# What a router carries and does not train, by name; every array float32.
State = dict[str, Array]


class RouterInputs(NamedTuple):
  """What a router may look at.

  Attributes:
    x_GMD: tokens.
    logits_GME: float32 router logits; a router with zero-computation experts
      has a column for each of them behind the E experts.
    token_ids_GM: int32 vocabulary ids.
    modality_GM: int32, as in `TokenBatch`.
    valid_GM: bool, False for padding, which is never routed.
    length: T, tokens per sequence, of which groups are runs or parts; 0 where
      no device holds whole ones.
    batch_axes: mesh axes over which sums of the whole batch are taken.
  """

  x_GMD: Array
  logits_GME: Array
  token_ids_GM: Array
  modality_GM: Array
  valid_GM: Array
  length: int
  batch_axes: tuple[str, ...] = ()


class RoutingPlan(NamedTuple):
  """Who goes where.

  Attributes:
    token_GR: int32 in [0, M), the token of each row.
    expert_GR: int32 in [0, E), the expert of each row.
    weight_GR: float32, what the expert's output is multiplied with.
    valid_GR: bool, False for a row that does not exist.
    rows_GMA: int32 in [0, R), the rows of each token, -1 where there are fewer:
      the inverse of token_GR. Row order is priority: where capacity runs out,
      later rows are dropped.
    losses: name -> (sum, weight) over valid tokens, unscaled.
    statistics: name -> (sum, weight).
    num_spare: the last so many of each token's choices stand by: one takes
      part only where an earlier one of its token found its expert full.
    own_weight_GM: float32, what the token itself is multiplied with in its
      output (copy experts); None for 0.
    dropped: float32, choices that the router itself took out, since their
      expert is closed to the token: they have no valid row, and are counted
      with the rows that found no room.
  """

  token_GR: Array
  expert_GR: Array
  weight_GR: Array
  valid_GR: Array
  rows_GMA: Array
  losses: dict[str, Pair]
  statistics: dict[str, Pair]
  num_spare: int = 0
  own_weight_GM: Array | None = None
  dropped: Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class Router:
  """Decides for each token which experts see it.

  A router's state is carried beside the parameters and not trained. `route`
  reads it; what a step saw is added to it over microbatches and devices by
  `observe`, and once a step `update` acts on the sums. All arrays float32.

  Attributes:
    num_active: experts per token: k, or its mean where experts choose.
  """

  num_active: int = 2

  # Whether a token's experts depend on no later token, in evaluation and in
  # training.
  is_causal = True
  is_causal_in_training = True
  # Further choices of each token, which stand by for experts that are full.
  num_spare = 0
  # Experts that compute nothing, among which tokens choose beside the E.
  num_added = 0

  def __post_init__(self):
    bounds.at_least(1, 'TOP_K', self.num_active, 'experts of each token')
    spare = 'choices that stand by for full experts'
    bounds.at_least(0, 'num_spare', self.num_spare, spare)

  def mean_active(self, num_experts: int) -> float:
    """Rows per token when experts are used evenly: what its FLOPs count."""
    del num_experts
    return self.num_active

  def init_state(self, num_experts: int) -> State:
    """State before the first step; empty for none."""
    del num_experts
    return {}

  def perturb(self, x_GMD: Array, keys_G: Array, train: bool) -> Array:
    """Tokens as the product with the router's weights sees them."""
    del keys_G, train
    return x_GMD

  def route(
    self,
    inputs: RouterInputs,
    state: State,
    keys_G: Array,
    train: bool,
  ) -> RoutingPlan:
    """Makes the plan; `keys_G` are keys by global group index."""
    raise NotImplementedError

  def observe(self, state: State, statistics: dict[str, Pair]) -> State:
    """State with one microbatch's statistics, summed over devices, added."""
    del statistics
    return state

  def update(self, state: State) -> State:
    """State for the next step; arrays may carry leading dims, one per layer."""
    return state


def rows_of_choices(
  expert_GMA: Array, weight_GMA: Array, valid: Array
) -> tuple[Array, Array, Array, Array, Array]:
  """Rows of a plan in which every token chooses A experts.

  First choices of all tokens come before second choices, as in GShard
  (https://arxiv.org/abs/2006.16668, algorithm 1), so that a full expert turns
  away second choices first, and later tokens before earlier ones.

  Args:
    expert_GMA: int32 in [0, E).
    weight_GMA: float32.
    valid: bool [G, M] by token, or [G, M, A] by choice.

  Returns:
    (token_GR, expert_GR, weight_GR, valid_GR, rows_GMA) with R = A * M.
  """
  G, M, A = expert_GMA.shape
  tokens_M = jnp.arange(M, dtype=jnp.int32)
  token_GR = jnp.broadcast_to(jnp.tile(tokens_M, A), (G, A * M))
  rows_MA = tokens_M[:, None] + M * jnp.arange(A, dtype=jnp.int32)
  by_choice = valid if valid.ndim == 3 else valid[..., None]
  valid_GMA = jnp.broadcast_to(by_choice, (G, M, A))
  return (
    token_GR,
    expert_GMA.swapaxes(1, 2).reshape(G, A * M),
    weight_GMA.swapaxes(1, 2).reshape(G, A * M),
    valid_GMA.swapaxes(1, 2).reshape(G, A * M),
    jnp.broadcast_to(rows_MA, (G, M, A)),
  )
