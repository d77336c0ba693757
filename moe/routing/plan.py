"""The inputs of a router and the plan that it makes, for groups of tokens.

The first dim of every array is the routing groups G. A plan is a list of R
rows, each a token, an expert and a weight. R is static. The form of a plan is
the same whether tokens choose experts or experts choose tokens.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe import bounds
from moe.types import Array, Pair

# Arrays that a router carries and does not train, by name; all are float32.
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
    length: T, tokens per sequence; 0 if no device holds whole sequences. A
      group is several sequences or a part of one.
    batch_axes: mesh axes over which sums of the whole batch are taken.
    num_modalities: statistics tell so many modalities apart; 1 for none.
  """

  x_GMD: Array
  logits_GME: Array
  token_ids_GM: Array
  modality_GM: Array
  valid_GM: Array
  length: int
  batch_axes: tuple[str, ...] = ()
  num_modalities: int = 1


class RoutingPlan(NamedTuple):
  """The experts of each token.

  Rows are in the order of their priority: an expert without free slots drops
  the later rows.

  Attributes:
    token_GR: int32 in [0, M), the token of each row.
    expert_GR: int32 in [0, E), the expert of each row.
    weight_GR: float32 factor of the expert's output.
    valid_GR: bool, False for a row that does not exist.
    rows_GMA: int32 in [0, R), the rows of each token, -1 where it has fewer;
      the inverse of token_GR.
    losses: name -> (sum, weight) over valid tokens, unscaled.
    statistics: name -> (sum, weight).
    num_spare: the last `num_spare` choices of each token are spare. A spare
      choice is used only if an expert of an earlier choice is full.
    own_weight_GM: float32 factor of the token itself in its output, which copy
      experts add; None for 0.
    dropped: float32, number of choices that the router itself dropped because
      the token may not use the expert. Such choices have no valid row. They
      count as dropped, like rows that a full expert turns away.
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

  A router may have a state, float32 arrays that are carried beside the
  parameters and not trained. `route` reads the state. `observe` adds the
  statistics of each microbatch to it, summed over devices. Once a step,
  `update` acts on these sums.

  Attributes:
    num_active: k, experts per token; their mean number if experts choose.
  """

  num_active: int = 2

  # Whether a token's experts are independent of later tokens, in evaluation and
  # in training.
  is_causal = True
  is_causal_in_training = True
  # Spare choices of each token, used if earlier choices are full.
  num_spare = 0
  # Experts that compute nothing; tokens choose among these and the E experts.
  num_added = 0
  # Relative noise on the inputs of the router in training.
  jitter = 0.0

  def __post_init__(self):
    bounds.at_least(1, 'TOP_K', self.num_active, 'experts that see each token')
    spare = 'spare choices of each token, for full experts'
    bounds.at_least(0, 'num_spare', self.num_spare, spare)

  def mean_active(self, num_experts: int) -> float:
    """Rows per token when experts are used evenly; it decides the FLOPs."""
    del num_experts
    return self.num_active

  def init_state(self, num_experts: int) -> State:
    """State before the first step; empty if the router has none."""
    del num_experts
    return {}

  def perturb(self, x_GMD: Array, keys_G: Array) -> Array:
    """Jitters the inputs of the router; experts see the tokens without it."""
    noise = lambda key: jax.random.uniform(
      key,
      x_GMD.shape[1:],
      jnp.float32,
      1.0 - self.jitter,
      1.0 + self.jitter,
    )
    return x_GMD.astype(jnp.float32) * jax.vmap(noise)(keys_G)

  def route(
    self,
    inputs: RouterInputs,
    state: State,
    keys_G: Array,
    train: bool,
  ) -> RoutingPlan:
    """Makes the plan; `keys_G` holds a key for each group of the batch."""
    raise NotImplementedError

  def observe(self, state: State, statistics: dict[str, Pair]) -> State:
    """Adds one microbatch's statistics, summed over devices, to the state."""
    del statistics
    return state

  def update(self, state: State) -> State:
    """State for the next step; arrays may carry leading dims, one per layer."""
    return state
