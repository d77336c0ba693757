r"""What a run costs, before a chip is rented: python -m launch.plan .

--gin_file=gin_configs/runs/poems_cpu.gin
    parameters, FLOPs, bytes, chip-hours and expected drops, by shapes alone
--gin_file=FILE --topology=v5p:8x16x16
    compiles the training step for those chips, on this machine, and says what
    each of them holds, sends and computes, and how long that takes
--gin_file=FILE --topology=v5p:8x8x8 --search
    proposes a mesh and what else it takes, and refuses what can't work

Topologies: v4, v5p and tpu7x in three dims, v5e and v6e in two. No TPU is
needed.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from launch import flags

# A stated figure for chip-hours, not a promise: what good sparse runs reach.
STATED_MFU = 0.4
_VARIATION = 0.3
# Of a search: layouts shown, and of these compiled: until so many fit.
_SHOWN, _VERIFIED = 10, 2


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Command-line flags, and what --gin. flags bind."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.plan',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--topology', metavar='SLICE', help='chips, such as v5p:8x16x16')
  add('--search', action='store_true', help='propose a mesh for the topology')
  add('--json', action='store_true', help='one JSON object on standard output')
  add('--html', metavar='FILE', help='write the plan as a page of its own')
  return flags.parse(parser, argv)


def abstract_state(run):
  """(TrainState of shapes, logical axes of its parameters), on no device."""
  import jax

  from moe.models.functional import Functional
  from moe.optim import optimizers
  from moe.train import program, state

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


def layers_of(run):
  """(stack, attention, sparse layer) of a run's model, to read sizes from."""
  stack = run.model.stack(parent=None)
  block = stack.block(parent=None)
  return stack, block.attention(parent=None), block.moe(parent=None)


def least_devices(run) -> int:
  """Devices of a run's mesh; an axis that takes what is left counts as one."""
  return math.prod(n for n in vars(run.mesh).values() if n != -1)


def layout_of(run, num_devices: int):
  """Mesh axes by use, on devices that need not be there."""
  import jax

  from moe.parallel import mesh, rules

  sizes = run.mesh.sizes(num_devices)
  return rules.layout(
    rules.table(run.rules), jax.sharding.AbstractMesh(sizes, mesh.AXES)
  )


def buffers(run, num_devices: int) -> list[dict[str, int]]:
  """Buffers that rows can overflow, as arguments of `drops.expected_share`.

  Empty where none can: a dense model, one that mixes instead of dispatching, or
  dispatch and exchange without bounds.
  """
  from moe.routing import slots
  from moe.scale import drops

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


def expected_drops(run, num_devices: int, variation: float) -> float:
  """Share of rows dropped: of the buffer that turns away most."""
  from moe.scale import drops

  shares = [
    drops.expected_share(**b, variation=variation)
    for b in buffers(run, num_devices)
  ]
  return max(shares, default=0.0)


def has_splash(run, num_devices: int) -> bool:
  """Whether attention is the kernel of TPUs, on so many of them."""
  import jax

  from moe.layers import kernels

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


def recipe_of(run, num_devices: int, is_tpu: bool = False):
  """What a step of the run executes.

  Args:
    run: what is planned.
    num_devices: of its mesh.
    is_tpu: whether they are TPUs, which have an attention kernel of their own;
      others are taken to compute it in plain XLA.
  """
  from moe.layers import attention as attention_lib
  from moe.layers import kernels
  from moe.scale import cost, hlo

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
    share, backward = hlo.splash_share(T, S, tiles), 3.5
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
  from moe.layers import feed_forward
  from moe.scale import cost

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


def loss_chunks(run) -> int:
  """Pieces of the loss, as the run's objective is configured."""
  import gin

  bound = getattr(run.objective, 'keywords', {})
  if 'num_chunks' in bound:
    return bound['num_chunks']
  try:
    return gin.query_parameter('%LOSS_CHUNKS')
  except ValueError:
    return 1


def plan_shapes(run, slice_=None) -> dict[str, Any]:
  """All that is known without a compiler; on a slice, or on any devices."""
  import jax

  from launch import train
  from moe.scale import cost, topology

  ts, logical_axes = abstract_state(run)
  counts = train.counts_of(run, ts.params, logical_axes)
  _, _, moe = layers_of(run)
  active = moe.make_router().mean_active(moe.num_experts)
  parts = cost.components(ts.params, logical_axes, active)
  devices = slice_.num_devices if slice_ else least_devices(run)
  is_tpu = slice_ is not None and slice_.chip.compiler is not None
  forward, step = cost.executed_flops_per_token(
    parts, recipe_of(run, devices, is_tpu)
  )
  step_tokens = run.data.batch_size * run.data.sequence_length
  tokens = step_tokens * run.settings.train_steps
  flops = tokens * counts['flops_per_token_train']
  hours = {
    name: flops / (chip.peak['bfloat16'] * STATED_MFU) / 3600
    for name, chip in topology.CHIPS.items()
  }
  gradients = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, run.storage.grads), ts.params
  )
  return {
    **counts,
    'components': {
      part: {'total': c.total, 'active': c.active} for part, c in parts.items()
    },
    'executed_flops_per_token_forward': forward,
    'executed_flops_per_token_train': step,
    'param_bytes': cost.total_bytes(ts.params),
    'gradient_bytes': cost.total_bytes(gradients),
    'optimizer_bytes': cost.total_bytes(ts.opt_state),
    'tokens_per_step': step_tokens,
    'tokens': tokens,
    'flops': flops,
    'stated_mfu': STATED_MFU,
    'chip_hours': hours,
    'drop_rate_balanced': expected_drops(run, devices, 0.0),
    'drop_rate_cv03': expected_drops(run, devices, _VARIATION),
  }


def programs_directory() -> str:
  """Where compiled steps are kept."""
  from launch.stores import default_cache_dir

  return os.path.join(default_cache_dir(), 'programs')


def plan_topology(run, slice_, known: dict[str, Any]) -> dict[str, Any]:
  """What the compiler says of the run's step on a slice."""
  from launch import train
  from moe.scale import compile as compile_lib
  from moe.scale import hlo, report, roofline, topology
  from moe.train import program as program_lib

  program = train.build(run, topology.devices(slice_))
  shapes = program_lib.batch_shapes(
    run.data.batch_size, run.data.sequence_length
  )
  mesh = dict(program.mesh.shape)
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  facts = {
    'topology': str(slice_),
    'mesh': {axis: n for axis, n in mesh.items() if n > 1},
    'chips': slice_.num_chips,
    'devices': slice_.num_devices,
    'hbm_bytes': hbm,
  }
  compiled = compile_lib.compile_step(program, shapes, programs_directory())
  done = roofline.work(hlo.parse(compiled.text), mesh)
  seconds = roofline.estimate(done, list(program.mesh.devices.flat), slice_)
  flops = known['tokens_per_step'] * known['flops_per_token_train']
  peak = slice_.chip.peak['bfloat16'] * slice_.num_chips
  # Of a TPU7x it gives a number below 0, which means nothing.
  own = compiled.optimal_seconds if compiled.optimal_seconds > 0 else None
  multiplied = done.cycles / done.cycles_once if done.cycles_once else 1.0
  held = {
    'argument_bytes': compiled.argument_bytes,
    'temp_bytes': compiled.temp_bytes,
    'code_bytes': compiled.code_bytes,
    'peak_bytes': compiled.peak_bytes,
  }
  facts |= held | {
    f'{key}_per_chip': n * slice_.chip.devices
    for key, n in (held | {'hbm_bytes': hbm}).items()
  }
  # What is live at a time may be less than what is set aside for it.
  full = compiled.argument_bytes + compiled.temp_bytes + compiled.code_bytes
  return facts | {
    'headroom': 1 - max(compiled.peak_bytes, full) / hbm,
    'compile_seconds': compiled.seconds,
    'is_cached': compiled.is_cached,
    'compiled': compiled.path,
    'executed_flops_per_chip': done.flops * slice_.chip.devices,
    'hbm_traffic_per_chip': done.bytes * slice_.chip.devices,
    'collective_bytes_per_chip': slice_.chip.devices
    * sum(t.moved * t.times for t in done.transfers),
    # Each slice's chips would meet those of the other with their part of the
    # gradients.
    'network_seconds_two_slices': known['gradient_bytes']
    / (slice_.num_chips * slice_.chip.network_bandwidth),
    'collectives': report.collectives(done.transfers, seconds.by_transfer),
    'axes_on_torus': report.axes_on_torus(program.mesh, slice_),
    'step_seconds_no_overlap': seconds.no_overlap,
    'step_seconds_full_overlap': seconds.full_overlap,
    'busy_seconds': seconds.busy,
    'compute_seconds': seconds.compute,
    'mfu_no_overlap': flops / peak / seconds.no_overlap,
    'mfu_full_overlap': flops / peak / seconds.full_overlap,
    'bound': seconds.bound,
    'compiler_seconds': own and own * multiplied,
    'compiler_seconds_once': own,
    'unknown_loops': list(done.unknown_loops),
  }


def searched(
  args: argparse.Namespace, overrides: list[str], run
) -> dict[str, Any]:
  """Forecasts for `--search`, the best of them compiled."""
  from launch import config, search
  from launch.stores import log
  from moe.scale import topology

  slice_ = topology.parse(args.topology)
  found, refused = search.search(run, slice_)
  rows = [vars(f) for f in found[:_SHOWN]]

  def compiled(changes: Sequence[str]) -> dict[str, Any]:
    log(f'compiling {" ".join(changes)}')
    again = config.load(args.gin_file, [*overrides, *changes])
    made = plan_topology(again, slice_, plan_shapes(again, slice_))
    keys = ('peak_bytes', 'step_seconds_no_overlap', 'mfu_no_overlap')
    return {key: made[key] for key in keys}

  search.verify(rows, compiled, _VERIFIED, 2 * _VERIFIED)
  return {'fit': len(found), 'best': rows, 'refused': refused}


def plan(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs the command; 1 where the step does not fit."""
  from launch import config
  from moe.scale import compile as compile_lib
  from moe.scale import report, topology

  if args.search and not args.topology:
    raise ValueError('--search needs --topology=SLICE, such as v5p:8x8x8.')
  slice_ = topology.parse(args.topology) if args.topology else None
  run = config.load(args.gin_file, overrides)
  # A search is for the mesh: that of the run need not suit the slice.
  facts = plan_shapes(run, None if args.search else slice_)
  code = 0
  if args.search:
    facts |= {'topology': str(slice_), 'search': searched(args, overrides, run)}
  elif slice_:
    try:
      facts |= plan_topology(run, slice_, facts)
    except compile_lib.DoesNotFit as error:
      from launch import search

      facts |= {
        'topology': str(slice_),
        'hbm_bytes': slice_.chip.hbm_bytes // slice_.chip.devices,
        'does_not_fit': ' '.join(str(error).split()),
        'needed_bytes': error.needed,
        'knobs': search.knobs(run, slice_),
      }
      code = 1
  if args.html:
    with open(args.html, 'w', encoding='utf-8') as f:
      f.write(report.html(facts, ' '.join(args.gin_file + overrides)))
  print(json.dumps(facts, indent=2) if args.json else report.text(facts))
  return code


def main(argv: Sequence[str] | None = None) -> int:
  """Plans; 2 for what the user can mend, with one sentence on how."""
  from launch.stores import log

  args, overrides = parse(argv)
  # Nothing here runs on an accelerator: shapes, and a compiler.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  try:
    return plan(args, overrides)
  except (ValueError, OSError) as error:
    log(f'error: {" ".join(str(error).split())}')
    return 2


if __name__ == '__main__':
  sys.exit(main())
