"""The inputs of a router and the plan that it makes, for groups of tokens.

The first dim of an array of tokens or rows counts the routing groups, G. The
plan of a group is a list of R rows. A row is a token, an expert and a weight. R
is static. Plans have the same form whether tokens choose experts or experts
choose tokens.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe import bounds
from moe.types import Array, Pair

# Name -> float32 array that a router keeps from step to step. No optimizer
# trains it.
State = dict[str, Array]


class RouterInputs(NamedTuple):
  """What a router may read.

  Attributes:
    x_GMD: tokens.
    logits_GME: float32 router logits. Zero-computation experts have further
      columns behind those of the E experts.
    token_ids_GM: int32 vocabulary ids.
    modality_GM: int32 modalities, as in `TokenBatch`.
    valid_GM: bool, False for padding, which is never routed.
    length: T, tokens per sequence; 0 if no device has whole sequences.
    batch_axes: mesh axes that divide the tokens of the whole batch.
    num_modalities: statistics are also computed for each of the first
      `num_modalities` modalities; 1 for no such statistics.
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

  Rows are in the order of the priority 'position': a full expert drops later
  rows.

  Attributes:
    token_GR: int32 in [0, M), the token of each row.
    expert_GR: int32 in [0, E), the expert of each row.
    weight_GR: float32 factor of the expert's output.
    valid_GR: bool, False for a row that asks for no expert of the layer, for
      example a row of padding.
    rows_GMA: int32 in [0, R), the rows of each token, padded with -1. This is
      the inverse of token_GR.
    losses: name -> (sum, weight) over valid tokens, unscaled.
    statistics: name -> (sum, weight).
    num_spare: number of spare choices per token. These are its last choices. A
      spare choice is used only if an expert of an earlier choice is full.
    own_weight_GM: float32 weight with which copy experts add the token itself
      to its output; None for 0.
    dropped: float32, number of choices that the router dropped because the
      token may not use the expert. Such choices have no valid row. They are
      counted as dropped, like rows of a full expert.
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
  """Decides which experts process each token.

  A router may have a state: float32 arrays that are stored beside the
  parameters and not trained. `route` reads the state. `observe` adds the
  statistics of each microbatch to the state, summed over devices. `update` uses
  these sums once a step.

  Attributes:
    num_active: k, experts per token. If experts choose tokens, this is the
      mean.
  """

  num_active: int = 2

  # Each tells whether a token's experts never depend on later tokens: the first
  # in evaluation, the second in training.
  is_causal = True
  is_causal_in_training = True
  # Number of spare choices per token, see `RoutingPlan`.
  num_spare = 0
  # Number of experts that compute nothing. Tokens choose among these and the E
  # experts.
  num_added = 0
  # Relative size of the noise on the router's inputs in training.
  jitter = 0.0

  def __post_init__(self):
    bounds.at_least(1, 'TOP_K', self.num_active, 'experts that see each token')
    spare = 'spare choices of each token, for full experts'
    bounds.at_least(0, 'num_spare', self.num_spare, spare)

  def mean_active(self, num_experts: int) -> float:
    """Mean number of rows per token if all experts are used equally often."""
    del num_experts
    return self.num_active

  def init_state(self, num_experts: int) -> State:
    """Makes the state before the first step; {} if the router has no state."""
    del num_experts
    return {}

  def perturb(self, x_GMD: Array, keys_G: Array) -> Array:
    """Multiplies inputs by random factors from 1 - jitter to 1 + jitter.

    Only the router reads the result; experts get the tokens unchanged.
    """
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
    """Makes the plan; `keys_G` has a random key for each routing group."""
    raise NotImplementedError

  def observe(self, state: State, statistics: dict[str, Pair]) -> State:
    """Adds a microbatch's statistics, summed over devices, to the state."""
    del statistics
    return state

  def update(self, state: State) -> State:
    """Returns the next step's state; arrays may have leading dims of layers."""
    return state
