"""Counts the FLOPs of the matrix products in a compiled program."""

import functools
import math
import re

import numpy as np

from moe.scale.hlo import Instruction, Module, Shape


def _numbers(window: str, key: str, dims: int, default: int) -> list[int]:
  found = re.search(rf'\b{key}=([-\dx_]+)', window)
  if not found:
    return [default] * dims
  return [int(n) for n in found.group(1).split('x')]


@functools.lru_cache(maxsize=4096)
def _valid_pairs(
  out: int, kernel: int, base: int, stride: int, pad: int, dilations: tuple
) -> int:
  """Counts products of a convolution along one dim, without padding.

  These are the pairs (output place, kernel place) that read a real element of
  the input.
  """
  base_dilation, window_dilation = dilations
  first_K1 = np.arange(kernel)[:, None] * window_dilation - pad
  place_KO = first_K1 + np.arange(out) * stride
  inside_KO = (place_KO >= 0) & (place_KO <= (base - 1) * base_dilation)
  return int(np.sum(inside_KO & (place_KO % base_dilation == 0)))


def _convolution_flops(
  i: Instruction, lhs: Shape, rhs: Shape, window: str
) -> int:
  left, kernel, result = re.split(r'_|->', i.attribute('dim_labels'))
  out = i.shapes[0].dims
  spatial = [c for c in result if c.isdigit()]
  n = len(spatial)
  size = lambda dims, labels, c: dims[labels.index(c)]
  strides = _numbers(window, 'stride', n, 1)
  lhs_dilate = _numbers(window, 'lhs_dilate', n, 1)
  rhs_dilate = _numbers(window, 'rhs_dilate', n, 1)
  pads = re.search(r'\bpad=([-\dx_]+)', window)
  lows = (
    [int(p.split('_')[0]) for p in pads.group(1).split('x')]
    if pads
    else [0] * n
  )
  flops = 2 * size(rhs.dims, kernel, 'i')
  flops *= size(out, result, 'b') * size(out, result, 'f')
  for c in spatial:
    d = int(c)
    flops *= _valid_pairs(
      size(out, result, c),
      size(rhs.dims, kernel, c),
      size(lhs.dims, left, c),
      strides[d],
      lows[d],
      (lhs_dilate[d], rhs_dilate[d]),
    )
  return flops


_SPLASH = re.compile(r'splash_m[hq]a_(fwd|dq|dkv)')
# Number of products in each kernel of splash attention: (products over the
# width of queries and keys, products over the width of values). All three
# kernels compute the scores. Both backward kernels also compute the gradient of
# the probabilities.
_SPLASH_PRODUCTS = {'fwd': (1, 1), 'dq': (2, 1), 'dkv': (2, 2)}


def splash_share(T: int, S: int, tiles: tuple[int, int]) -> float:
  """The share of the [T, S] scores that splash attention computes.

  The kernel skips a tile if all its scores are masked. The queries are the last
  T of the S tokens. We assume a causal mask: each query attends to itself and
  to earlier tokens. Queries can also attend to later tokens of their own block;
  the share does not include these.

  Args:
    T: number of queries.
    S: number of keys.
    tiles: (number of tiles along the queries, number along the keys).
  """
  rows, columns = T // tiles[0], S // tiles[1]
  last = S - T + (np.arange(tiles[0]) + 1) * rows - 1
  return float(np.sum(last // columns + 1)) / math.prod(tiles)


def _splash_flops(module: Module, computation: str, i: Instruction) -> int:
  """FLOPs of a splash attention kernel, from the shapes of its operands.

  The program does not state these FLOPs. The first two operands are tables of
  integers with an entry for each tile of scores. The next three are queries,
  keys and values [..., heads, tokens, width].
  """
  kind = _SPLASH.search(i.name).group(1)
  inside = module.computations[computation]
  shapes = [inside[o].shapes[0] for o in i.operands]
  arrays = [s.dims for s in shapes if s.dtype in ('bf16', 'f32')]
  query, key, value = arrays[:3]
  share = splash_share(query[-2], key[-2], shapes[0].dims[-2:])
  of_keys, of_values = _SPLASH_PRODUCTS[kind]
  width = of_keys * query[-1] + of_values * value[-1]
  return round(2 * math.prod(query[:-1]) * key[-2] * share * width)


def product_flops(module: Module, computation: str, i: Instruction) -> int:
  """FLOPs of the matrix products in one instruction and its callees.

  TPU programs write products as convolutions. The batch dims of an einsum
  become spatial dims of a convolution that mostly multiplies padding. This
  costs nothing, so we do not count products with padding. The FLOPs of splash
  attention come from its shapes; other kernels state theirs in the program.
  """
  if i.opcode in ('convolution', 'dot'):
    inside = module.computations[computation]
    lhs, rhs = (inside[o].shapes[0] for o in i.operands[:2])
    if i.opcode == 'convolution':
      window = re.search(r'window=\{([^}]*)\}', i.attributes)
      return _convolution_flops(i, lhs, rhs, window.group(1) if window else '')
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', i.attributes)
    dims = [int(d) for d in contracted.group(1).split(',') if d]
    return 2 * i.shapes[0].size * math.prod(lhs.dims[d] for d in dims)
  if i.opcode == 'custom-call':
    if _SPLASH.search(i.name):
      return _splash_flops(module, computation, i)
    counted = re.search(r'"flops":"?(\d+)', i.attributes)
    return int(counted.group(1)) if counted else 0
  if i.opcode in ('fusion', 'async-start') and i.calls:
    name = i.calls if i.opcode == 'fusion' else module.behind(i)
    return sum(
      product_flops(module, name, inner)
      for inner in module.computations[name].values()
    )
  return 0
