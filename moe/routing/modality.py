"""Statistics of routing for each modality."""

import jax.numpy as jnp

from moe.routing import slots
from moe.routing.balance import choice_statistics
from moe.routing.plan import RouterInputs, RoutingPlan
from moe.types import MODALITIES, Array, Pair


def statistics(
  probs_GME: Array, expert_GMA: Array, inputs: RouterInputs
) -> dict[str, Pair]:
  """Computes `choice_statistics` for each modality.

  Args:
    probs_GME: distribution over experts, float32.
    expert_GMA: int32 choices, the best one first; negative where there is none.
    inputs: inputs of the router.

  Returns:
    Name, such as 'load_text' or 'entropy_image' -> (sum, weight).
  """
  found = {}
  for number, name in _told_apart(inputs):
    mine_GM = inputs.valid_GM & (inputs.modality_GM == number)
    of_tokens = choice_statistics(probs_GME, expert_GMA, mine_GM)
    found |= {f'{what}_{name}': pair for what, pair in of_tokens.items()}
  return found


def drops(
  inputs: RouterInputs, plan: RoutingPlan, experts_GM: Array
) -> dict[str, Pair]:
  """Counts dropped rows by modality, under names such as 'dropped_text'.

  Choices that the router dropped (`RoutingPlan.dropped`) are not counted.

  Args:
    inputs: inputs of the router.
    plan: the experts of each token.
    experts_GM: how many experts see each token.
  """
  asked_GR = slots.requested_rows(plan)
  of_row_GR = jnp.take_along_axis(inputs.modality_GM, plan.token_GR, axis=1)
  found = {}
  for number, name in _told_apart(inputs):
    kept = jnp.sum(experts_GM, where=inputs.modality_GM == number)
    asked = jnp.sum(asked_GR & (of_row_GR == number), dtype=jnp.float32)
    found[f'dropped_{name}'] = asked - kept, asked
  return found


def _told_apart(inputs: RouterInputs) -> list[tuple[int, str]]:
  """Returns (number, name) of each modality with statistics of its own."""
  return list(enumerate(MODALITIES[: inputs.num_modalities]))
