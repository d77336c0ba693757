"""Makes and checks the parts of an MoE layer once for equal settings.

flax copies a layer for each pass. So the parts are cached by their settings,
and no pass makes or checks them again.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from moe import bounds
from moe.layers import feed_forward
from moe.routing.dispatch import Dispatch
from moe.routing.exchange import Exchange
from moe.routing.plan import Router
from moe.types import MODALITIES, Layout


class MoESizes(NamedTuple):
  """Settings of `moe_layer.MoE` with the same names."""

  num_experts: int
  expert_d_ff: int
  shared_d_ff: int
  group_size: int
  activation: str
  num_modalities: int


class Parts(NamedTuple):
  """The parts of an MoE layer.

  Attributes:
    router: the router.
    dispatch: the dispatch of training.
    exchange: the exchange of training.
    active: rows per token if experts are used evenly.
    has_state: whether the router carries a state.
    devices: how many devices divide the sequences of a batch, and how many
      divide the tokens of a sequence.
  """

  router: Router
  dispatch: Dispatch
  exchange: Exchange
  active: float
  has_state: bool
  devices: tuple[int, int]


@functools.cache
def make_parts(
  sizes: MoESizes,
  top_k: int,
  router: Callable[..., Router],
  dispatch: Callable[..., Dispatch],
  exchange: Callable[..., Exchange],
  layout: Layout,
) -> Parts:
  """Makes the parts of a layer.

  Args:
    sizes: the sizes of the layer.
    top_k: experts per token.
    router: makes the router, given `num_active`.
    dispatch: makes the dispatch.
    exchange: makes the exchange.
    layout: mesh axes by use.

  Raises:
    ValueError: for a setting that is out of range, that the mesh cannot
      divide, or that does not fit the other settings.
  """
  at_least, together = bounds.at_least, 'tokens that are routed together'
  at_least(1, 'NUM_EXPERTS', sizes.num_experts, 'experts of a layer')
  at_least(1, 'EXPERT_D_FF', sizes.expert_d_ff, 'the width of an expert')
  at_least(0, 'SHARED_D_FF', sizes.shared_d_ff, '0 for no shared expert')
  at_least(1, 'GROUP_SIZE', sizes.group_size, together)
  bounds.one_of('ACTIVATION', sizes.activation, feed_forward.ACTIVATIONS)
  meaning, most = 'modalities that are told apart', len(MODALITIES)
  number = sizes.num_modalities
  bounds.within('num_modalities', number, meaning, least=1, most=most)
  experts, tensor = map(layout.size, (layout.expert_axes, layout.tensor_axes))
  if sizes.num_experts % experts:
    raise ValueError(
      f"NUM_EXPERTS={sizes.num_experts} must be divisible by the 'expert' mesh"
      f' axis ({experts}): use a multiple of {experts}, or lower MESH_EXPERT.'
    )
  if sizes.expert_d_ff % tensor:
    raise ValueError(
      f"EXPERT_D_FF={sizes.expert_d_ff} must be divisible by the 'model' mesh"
      f' axis ({tensor}): use a multiple of {tensor}, or lower MESH_MODEL.'
    )
  made = router(num_active=top_k)
  choices = sizes.num_experts + made.num_added
  if made.num_active > choices:
    raise ValueError(
      f'TOP_K={made.num_active} must be at most the {choices} experts of a'
      ' layer: lower it, or raise NUM_EXPERTS.'
    )
  state = jax.eval_shape(lambda: made.init_state(sizes.num_experts))
  return Parts(
    made,
    dispatch(),
    exchange(),
    made.mean_active(sizes.num_experts),
    bool(state),
    (layout.size(layout.batch_axes), layout.size(layout.sequence_axes)),
  )
