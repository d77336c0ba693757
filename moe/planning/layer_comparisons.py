"""Compares the speed of an MoE layer with variants, on this machine."""

import argparse
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from moe.evaluate.timing import Timed, measure
from moe.parallel.mesh import MeshShape, make_mesh
from moe.planning import benchmark_devices as devices
from moe.planning.benchmark_layer import (
  UNIT,
  JittedLayer,
  LayerSizes,
  make_layer,
  num_slots,
  timed_layer,
  timed_products,
)
from moe.routing import dispatch, exchange

# Sizes for two CPU cores; layer_estimates.py has sizes for TPUs.
SIZES = {
  'd_model': 512,
  'd_ff': 1024,
  'experts': 8,
  'top_k': 2,
  'tokens': 8192,
  'group_size': 1024,
  'capacity_factor': 1.25,
  'dtype': 'float32',
}
MESH = MeshShape(data=2, expert=4)

# (timed programs, further entries of the report).
Compared = tuple[list[Timed], dict[str, float]]


def choices(args: argparse.Namespace) -> tuple[type, type]:
  """Returns the classes of (dispatch, exchange) that the flags name.

  Raises:
    ValueError: if no class has the name.
  """
  found = []
  # By default, the layer of `compare_dense` has no empty slots, so it has
  # exactly the FLOPs of the dense products.
  default = {'dispatch': 'Dropless' if args.compare == 'dense' else 'Sorted'}
  default['exchange'] = 'AllToAll'
  for flag, module in (('dispatch', dispatch), ('exchange', exchange)):
    name = getattr(args, flag) or default[flag]
    known = [
      n
      for n, c in vars(module).items()
      if dataclasses.is_dataclass(c)
      and c.__module__ == module.__name__
      and not n.startswith('_')
    ]
    if name not in known:
      raise ValueError(f'--{flag}={name} must be one of {known}.')
    found.append(getattr(module, name))
  return tuple(found)


def compare_mesh(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Compares 8 devices with 1 on the same cores."""
  eight_devices = devices.eight()
  one = make_layer(sizes, dispatcher, exchanger)
  eight = make_layer(
    sizes, dispatcher, exchanger, make_mesh(MESH, eight_devices)
  )
  named = ('1 device', one), ('8 devices, data 2 x expert 4', eight)
  return _compiled(named)


def compare_einsum(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Compares sorted dispatch with one-hot products."""
  del dispatcher
  return _compiled(
    (
      ('one-hot einsum', make_layer(sizes, dispatch.Einsum, exchanger)),
      ('sorted', make_layer(sizes, dispatch.Sorted, exchanger)),
    )
  )


def compare_dropless(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Compares `dispatcher`, which has a capacity, with dropless dispatch."""
  return _compiled(
    (
      ('capacity', make_layer(sizes, dispatcher, exchanger)),
      ('dropless', make_layer(sizes, dispatch.Dropless, exchanger)),
    )
  )


def compare_fine(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Compares layers with 1, 4 and 16 times as many experts and equal FLOPs."""
  finer = [sizes.finer(factor) for factor in (1, 4, 16)]
  return _compiled(
    (str(s), make_layer(s, dispatcher, exchanger)) for s in finer
  )


def compare_parts(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Compares the layer with the matrix products of its experts alone.

  If the experts have a capacity, they also multiply empty slots. The first row
  of the report includes the products of empty slots, the second row does not.
  """
  rows = sizes.tokens * sizes.top_k
  slots = num_slots(sizes, dispatcher)
  E = sizes.experts
  products = [timed_products('expert products, all slots', sizes, slots, E)]
  if slots != rows:
    needed = 'expert products, rows needed'
    products.append(timed_products(needed, sizes, rows, E))
  layer, _ = compare_none(sizes, dispatcher, exchanger)
  return [*products, *layer], {'rows': rows, 'slots': slots}


def compare_dense(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Compares the layer with dense products of equally many FLOPs.

  Only the FLOPs of routed rows are counted. A layer with capacity also
  multiplies empty slots. So with a capacity factor of 1.25 it can reach at most
  1 / 1.25 of the speed of these products.
  """
  rows = sizes.tokens * sizes.top_k
  products = timed_products('dense products', sizes, rows, 1)
  layer, extra = compare_none(sizes, dispatcher, exchanger)
  slots = num_slots(sizes, dispatcher)
  return [products, *layer], {
    **extra, 'rows': rows, 'slots': slots, 'most_possible': rows / slots
  }  # fmt: skip


def compare_none(
  sizes: LayerSizes, dispatcher: type, exchanger: type
) -> Compared:
  """Times the layer alone."""
  return _compiled([(
    str(sizes), make_layer(sizes, dispatcher, exchanger)
  )])  # fmt: skip


def _compiled(named: Iterable[tuple[str, JittedLayer]]) -> Compared:
  """Compiles layers; if there are two, their outputs are compared."""
  compiled, outputs = [], []
  for name, layer in named:
    timed, y_BTD = timed_layer(name, layer)
    compiled.append(timed)
    outputs.append(np.asarray(y_BTD, np.float32))
  if len(compiled) != 2:
    return compiled, {}
  difference = np.abs(outputs[1] - outputs[0]).max()
  return compiled, {'largest_difference': float(difference)}


COMPARISONS = {
  None: compare_none,
  'mesh': compare_mesh,
  'einsum': compare_einsum,
  'dropless': compare_dropless,
  'parts': compare_parts,
  'fine': compare_fine,
  'dense': compare_dense,
}


def sizes_of(args: argparse.Namespace, defaults: dict[str, Any]) -> LayerSizes:
  """Reads the sizes from the flags, with defaults for missing flags."""
  given = {name: getattr(args, name) for name in defaults}
  return LayerSizes(
    **{
      name: defaults[name] if value is None else value
      for name, value in given.items()
    }
  )


def _shares(report: dict[str, Any]) -> dict[str, float]:
  """Shares of the layer's time that are not spent on products of experts."""
  needed, layer = report['runs'][-2:]
  return {
    'share_beyond_products': 1 - report['ratio'],
    'share_beyond_needed_products': 1 - needed['seconds'] / layer['seconds'],
  }


def compare(args: argparse.Namespace) -> dict[str, Any]:
  """Makes the report of the command `moe` on the devices of this machine."""
  sizes = sizes_of(args, SIZES)
  classes = choices(args)
  timed, extra = COMPARISONS[args.compare](sizes, *classes)
  is_speed = args.compare in ('einsum', 'parts', 'dense')
  report = measure(timed, args.rounds, UNIT, sizes.tokens, is_speed)
  if args.compare == 'parts':
    extra |= _shares(report)
  device = jax.devices()[0].device_kind
  shown = {
    'sizes': dataclasses.asdict(sizes),
    'dispatch': classes[0].__name__,
    'exchange': classes[1].__name__,
    'device': device,
  }
  if args.compare == 'dense' or not args.compare:
    # A routed row takes 2 FLOPs per weight in the forward pass and 4 in the
    # backward pass. An expert has three matrices.
    weights = 3 * sizes.d_model * sizes.d_ff
    flops = 6 * weights * sizes.tokens * sizes.top_k
    extra['tflops_per_second'] = flops / report['seconds'] / 1e12
  return {**report, **extra, **shown}
