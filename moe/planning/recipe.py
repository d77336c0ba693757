"""What a step of a run executes, as far as shapes alone tell."""

import math

import jax

from moe.layers import attention as attention_lib
from moe.layers import feed_forward, kernels
from moe.models.functional import Functional
from moe.optim import optimizers
from moe.parallel import mesh, rules
from moe.routing import slots
from moe.runs.run import Run
from moe.scale import cost, drops, hlo_flops
from moe.train import program, state


def abstract_state(run: Run):
  """(TrainState of shapes, logical axes of its parameters), on no device."""
  objective = run.objective(Functional(run.model))
  optimizer = optimizers.build(
    run.optimizer(run.schedule), run.clip_norm, run.frozen, run.storage
  )
  shapes = program.batch_shapes(1, min(8, run.data.sequence_length))
  found = {}

  def init():
    params, carried, found['axes'] = objective.init(jax.random.key(0), shapes)
    return state.create(params, carried, optimizer)

  return jax.eval_shape(init), found['axes']


def layers_of(run: Run):
  """(stack, attention, sparse layer) of a run's model, to read sizes from."""
  stack = run.model.stack(parent=None)
  block = stack.block(parent=None)
  return stack, block.attention(parent=None), block.moe(parent=None)


def least_devices(run: Run) -> int:
  """Devices of a run's mesh; an axis that takes what is left counts as one."""
  return math.prod(n for n in vars(run.mesh).values() if n != -1)


def layout_of(run: Run, num_devices: int):
  """Mesh axes by use, on devices that need not be there."""
  sizes = run.mesh.sizes(num_devices)
  return rules.layout(
    rules.table(run.rules), jax.sharding.AbstractMesh(sizes, mesh.AXES)
  )


def buffers(run: Run, num_devices: int) -> list[dict[str, int]]:
  """Buffers that rows can overflow, as arguments of `drops.expected_share`.

  Empty where none can: a dense model, one that mixes instead of dispatching, or
  dispatch and exchange without bounds.
  """
  stack, _, moe = layers_of(run)
  is_dense = not stack.moe_every or stack.block(parent=None).dense_twin
  if is_dense or not hasattr(moe, 'dispatch'):
    return []
  dispatch, exchange = moe.dispatch(), moe.exchange()
  E = moe.num_experts
  active = moe.make_router().mean_active(E)
  k = max(1, round(active))
  choice = {'num_active': k, 'num_experts': E}
  layout = layout_of(run, num_devices)
  parts = layout.size(layout.expert_axes)
  # Devices of the 'model' axis work on the same tokens.
  shards = layout.size(layout.batch_axes) * layout.size(layout.sequence_axes)
  tokens = run.data.batch_size * run.data.sequence_length
  pooled = tokens // run.settings.num_microbatches // shards * parts
  factor = getattr(dispatch, 'capacity_factor', None)
  room = getattr(exchange, 'buffer_factor', None)
  is_pooled = room is not None and parts > 1
  found = []
  if factor is not None:
    M = pooled if is_pooled else moe.group_size
    slots_per_expert = slots.capacity(M, active, E, factor)
    found.append(choice | {'tokens': M, 'slots': slots_per_expert, 'held': 1})
  if is_pooled and room:
    rows = drops.pooled_slots(pooled, min(k, parts), parts, room)
    found.append(choice | {'tokens': pooled, 'slots': rows, 'held': E // parts})
  return found


def expected_drops(run: Run, num_devices: int, variation: float) -> float:
  """Share of rows dropped: of the buffer that turns away most."""
  shares = [
    drops.expected_share(**b, variation=variation)
    for b in buffers(run, num_devices)
  ]
  return max(shares, default=0.0)


def has_splash(run: Run, num_devices: int) -> bool:
  """Whether attention is the kernel of TPUs, on so many of them."""
  _, attention, _ = layers_of(run)
  B = run.data.batch_size // run.settings.num_microbatches
  shape = (B, run.data.sequence_length)
  heads = (
    attention.num_heads,
    getattr(attention, 'num_kv_heads', attention.num_heads),
  )
  # Its refusals do not depend on the width of heads.
  queries, keys = (
    jax.ShapeDtypeStruct((*shape, n, 128), run.model.dtype) for n in heads
  )
  refused = kernels.refusal('tpu', queries, keys, layout_of(run, num_devices))
  return attention.kernel != 'xla' and not refused


def recipe_of(run: Run, num_devices: int, is_tpu: bool = False):
  """What a step of the run executes.

  Args:
    run: what is planned.
    num_devices: of its mesh.
    is_tpu: whether they are TPUs, which have an attention kernel of their own;
      others are taken to compute it in plain XLA.
  """
  stack, attention, moe = layers_of(run)
  padding = 1.0
  found = buffers(run, num_devices)
  if found and hasattr(moe.dispatch(), 'capacity_factor'):
    b = found[0]
    rows = b['tokens'] * moe.make_router().mean_active(moe.num_experts)
    padding = b['slots'] * b['num_experts'] / rows
  is_fused = is_tpu and has_splash(run, num_devices)
  layout, S = layout_of(run, num_devices), run.data.sequence_length
  parts = attention_lib.num_parts(S, layout)
  share, backward = (parts + 1) / (2 * parts), 2.0
  if is_fused:
    T = S // layout.size(layout.sequence_axes)
    tiles = T // kernels.tile(T), S // kernels.tile(S)
    share, backward = hlo_flops.splash_share(T, S, tiles), 3.5
  return cost.Recipe(
    length=run.data.sequence_length,
    attention_width=attention.width(),
    num_layers=stack.num_layers,
    padding=padding,
    is_tied=run.model.tie_embeddings,
    redone=_redone(stack, moe, is_fused),
    is_loss_remat=loss_chunks(run) > 1,
    attention_share=share,
    attention_backward=backward,
  )


def _redone(stack, moe, is_fused: bool) -> dict[str, float]:
  """Shares of all layers' products that are done again for the gradient."""
  is_sparse = bool(stack.moe_every) and not stack.block(parent=None).dense_twin
  last = 1 / feed_forward.matrices_of(moe.activation)
  again = cost.redone(stack.remat, last, is_fused, is_sparse)
  if 'dense layers' in again and stack.num_dense_prefix:
    # Each block of the prefix is done again by itself.
    prefix = stack.num_dense_prefix
    periods = stack.num_layers - prefix - stack.num_periods() * is_sparse
    share = periods * again['dense layers'] + prefix * (1 - last)
    again['dense layers'] = share / (periods + prefix)
  return again


def loss_chunks(run: Run) -> int:
  """Pieces of the loss, as the run's objective is configured."""
  return getattr(run.objective, 'keywords', {}).get('num_chunks', 1)
