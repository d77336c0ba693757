"""Describes how a step of a run executes its model, from shapes alone."""

import jax
import optax

from moe.layers import attention as attention_lib
from moe.layers import kernels
from moe.layers.anatomy import ExpertsAnatomy
from moe.models.anatomy import Anatomy, anatomy
from moe.models.functional import Functional
from moe.objectives.objective import Objective
from moe.parallel import mesh, rules
from moe.runs.counts import head_ids, head_share
from moe.runs.run import Run, optimizer_of, reserved_of
from moe.scale import cost, drops, hlo_flops
from moe.train import state
from moe.types import MODALITIES, Layout, PyTree


def abstract_state(run: Run) -> tuple[state.TrainState, PyTree]:
  """Returns (TrainState of shapes, logical axes of the parameters)."""
  shape = 1, min(8, run.data.sequence_length)
  objective = run.objective(Functional(run.model), shape)
  return shapes_of_state(objective, optimizer_of(run))


def shapes_of_state(
  objective: Objective, optimizer: optax.GradientTransformation
) -> tuple[state.TrainState, PyTree]:
  """Returns (TrainState of shapes, logical axes of the parameters)."""
  shapes, found = objective.shapes(), {}

  def init() -> state.TrainState:
    params, carried, found['axes'] = objective.init(jax.random.key(0), shapes)
    return state.create(params, carried, optimizer)

  return jax.eval_shape(init), found['axes']


def least_devices(run: Run) -> int:
  """Smallest number of devices for a run's mesh; an axis of -1 counts as 1."""
  return run.mesh.fixed


def layout_of(run: Run, num_devices: int) -> Layout:
  """The run's mesh axes by use; the devices need not exist."""
  sizes = run.mesh.sizes(num_devices)
  return rules.layout(
    rules.table(run.rules), jax.sharding.AbstractMesh(sizes, mesh.AXES)
  )


def _pooled(run: Run, num_devices: int) -> tuple[int, int]:
  """Returns (tokens, n) for the n devices along the expert axis.

  `tokens` counts the tokens of one microbatch on all n devices together.
  """
  layout = layout_of(run, num_devices)
  parts = layout.size(layout.expert_axes)
  # Devices along the 'model' axis have the same tokens, so these count once.
  shards = layout.size(layout.batch_axes) * layout.size(layout.sequence_axes)
  tokens = run.data.batch_size * run.data.sequence_length
  return tokens // run.settings.num_microbatches // shards * parts, parts


def _capacity(
  run: Run, experts: ExpertsAnatomy, num_devices: int
) -> tuple[int, int | None]:
  """Returns (number of tokens that share an expert's slots, number of slots).

  The number of slots is None if it is not limited.
  """
  tokens, parts = _pooled(run, num_devices)
  if experts.buffer_factor is None or parts == 1:
    tokens = experts.group_size
  slots = experts.dispatch.capacity(
    tokens, experts.num_active, experts.num_experts
  )
  return tokens, slots


def buffers(run: Run, num_devices: int) -> list[dict[str, int]]:
  """Buffers that can overflow, as arguments of `drops.expected_share`.

  The result is [] in three cases: the model is dense; the model mixes tokens
  instead of dispatching them (soft MoE); or neither the experts' slots nor the
  buffers of the exchange have a limit.
  """
  experts = anatomy(run.model).experts
  if not experts or not experts.dispatch:
    return []
  k, E = max(1, round(experts.num_active)), experts.num_experts
  choice = {'num_active': k, 'num_experts': E}
  found = []
  tokens, slots = _capacity(run, experts, num_devices)
  if slots is not None:
    found.append(choice | {'tokens': tokens, 'slots': slots, 'held': 1})
  tokens, parts = _pooled(run, num_devices)
  if experts.buffer_factor and parts > 1:
    rows = drops.pooled_slots(
      tokens, min(k, parts), parts, experts.buffer_factor
    )
    found.append(choice | {'tokens': tokens, 'slots': rows, 'held': E // parts})
  return found


def _reserved(run: Run) -> tuple[int, ...]:
  """Number of experts by modality; () unless each expert has one modality."""
  reserved = reserved_of(run)
  if not reserved or sum(reserved) != anatomy(run.model).experts.num_experts:
    return ()
  return reserved


def drops_by_modality(
  run: Run, num_devices: int, variation: float
) -> dict[str, float]:
  """Expected share of dropped rows for each modality with tokens.

  If experts are reserved, the tokens of a modality choose among its own
  experts. The sizes of buffers assume equal loads of all experts. So a modality
  drops more rows if its share of the tokens is larger than its share of the
  experts.

  Returns:
    Name of the modality -> share, in the buffer that drops most; {} for a run
    with text alone.

  Raises:
    ValueError: if a device has experts of two modalities.
  """
  found, reserved = {}, _reserved(run) if run.data.shares else ()
  for number, share in enumerate(run.data.shares):
    dropped = []
    for buffer in buffers(run, num_devices) if share else ():
      if reserved:
        own = reserved[number]
        if own % buffer['held']:
          raise ValueError(
            f'RESERVED={reserved} must be multiples of {buffer["held"]}, the'
            ' experts of a device: change it.'
          )
        tokens = max(1, round(share * buffer['tokens']))
        buffer = buffer | {'tokens': tokens, 'num_experts': own}
      dropped.append(drops.expected_share(**buffer, variation=variation))
    if share:
      found[MODALITIES[number]] = max(dropped, default=0.0)
  return found


def expected_drops(run: Run, num_devices: int, variation: float) -> float:
  """Expected share of dropped rows, in the buffer that drops most.

  If the run states the shares of its modalities, the result is instead the mean
  over modalities, weighted by these shares.
  """
  by_modality = drops_by_modality(run, num_devices, variation)
  if by_modality:
    shares = dict(zip(MODALITIES, run.data.shares, strict=False))
    return sum(shares[name] * share for name, share in by_modality.items())
  shares = [
    drops.expected_share(**b, variation=variation)
    for b in buffers(run, num_devices)
  ]
  return max(shares, default=0.0)


def has_splash(run: Run, num_devices: int) -> bool:
  """Whether `num_devices` TPUs compute attention with the splash kernel."""
  attention = anatomy(run.model).attention
  B = run.data.batch_size // run.settings.num_microbatches
  shape = (B, run.data.sequence_length)
  # The kernel can be used for any head width, so 128 stands for all widths.
  queries, keys = (
    jax.ShapeDtypeStruct((*shape, n, 128), run.model.dtype)
    for n in (attention.num_heads, attention.num_kv_heads)
  )
  refused = kernels.refusal('tpu', queries, keys, layout_of(run, num_devices))
  return attention.kernel != 'xla' and not refused


def execution_of(
  run: Run, num_devices: int, is_tpu: bool = False
) -> cost.Execution:
  """Describes how a step of the run executes its model.

  Args:
    run: the planned run.
    num_devices: number of devices in its mesh.
    is_tpu: whether the devices are TPUs. Of the attention kernels, only that of
      TPUs is described; for other devices we assume plain XLA.
  """
  model = anatomy(run.model)
  is_fused = is_tpu and has_splash(run, num_devices)
  layout, S = layout_of(run, num_devices), run.data.sequence_length
  parts = attention_lib.num_parts(S, layout)
  share, backward = (parts + 1) / (2 * parts), 2.0
  if is_fused:
    T = S // layout.size(layout.sequence_axes)
    tiles = T // kernels.tile(T), S // kernels.tile(S)
    share, backward = hlo_flops.splash_share(T, S, tiles), 3.5
  return cost.Execution(
    length=run.data.sequence_length,
    attention_width=model.attention.pair_width,
    num_layers=len(model.layers),
    padding=_padding(run, model.experts, num_devices),
    is_tied=model.is_tied,
    recomputed=_recomputed(model, is_fused),
    is_loss_remat=loss_chunks(run) > 1,
    head_share=_head_share(run),
    attention_share=share,
    attention_backward=backward,
  )


def _padding(
  run: Run, experts: ExpertsAnatomy | None, num_devices: int
) -> float:
  """Number of rows that experts multiply / number of rows routed to them."""
  if not experts or not experts.dispatch:
    return 1.0
  tokens, slots = _capacity(run, experts, num_devices)
  if slots is None:
    return 1.0
  return slots * experts.num_experts / (tokens * experts.num_active)


def _recomputed(model: Anatomy, is_fused: bool) -> dict[str, float]:
  """Shares of products that the backward pass computes again, by component."""
  end = model.layers[-1]
  last = 1 / end.network.num_matrices
  again = cost.recomputed_shares(
    model.remat, last, is_fused, end.experts is not None
  )
  if 'dense layers' in again and model.prefix:
    # Each block of the prefix is recomputed separately, without its last
    # product.
    prefix = len(model.prefix)
    periods = len(model.layers) - prefix - model.num_sparse
    share = periods * again['dense layers'] + prefix * (1 - last)
    again['dense layers'] = share / (periods + prefix)
  return again


def loss_chunks(run: Run) -> int:
  """Number of chunks in which the run computes its loss."""
  options = getattr(run.objective, 'keywords', {})
  # A loss with weights of modalities has the options of a language model's.
  options = getattr(options.get('language'), 'keywords', options)
  return options.get('num_chunks', 1)


def _head_share(run: Run) -> float:
  """Upper bound of the share of the head's columns that a token pays for.

  Tokens are sorted by the range of their targets. A chunk with the targets of
  two ranges computes the logits of both.
  """
  borders = max(0, len(head_ids(run)) - 1)
  return min(1.0, head_share(run) + borders / loss_chunks(run))
