"""Writes a plan as text or as a self-contained page."""

import collections
import html as html_lib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moe.scale import roofline
from moe.scale.collectives import Transfer
from moe.scale.quantities import in_bytes, in_hours, in_seconds, short
from moe.scale.topology import Slice


def collectives(
  transfers: Sequence[Transfer], seconds: Sequence[float]
) -> list[dict[str, Any]]:
  """Adds up transfers of equal kind, axes and `is_network`, slowest first."""
  rows = collections.defaultdict(lambda: [0, 0.0, 0.0])
  for transfer, taken in zip(transfers, seconds, strict=True):
    row = rows[transfer.kind, transfer.axes, transfer.is_network]
    row[0] += transfer.times
    row[1] += transfer.moved * transfer.times
    row[2] += taken
  return [
    {
      'kind': kind,
      'axes': list(axes),
      'count': count,
      'bytes': moved,
      'seconds': taken,
      'is_network': is_network,
    }
    for (kind, axes, is_network), (count, moved, taken) in sorted(
      rows.items(), key=lambda item: -item[1][2]
    )
  ]


def axes_on_torus(mesh: Mesh, slice_: Slice) -> dict[str, str]:
  """Mesh axis -> its torus dims, such as 'x 2 of 8; y 16 of 16, a ring'."""
  coords = roofline.coordinates(list(mesh.devices.flat))
  numbers = np.array([getattr(d, 'slice_index', 0) for d in mesh.devices.flat])
  ids = np.arange(mesh.size).reshape(mesh.devices.shape)
  found = {}
  for i, (axis, size) in enumerate(mesh.shape.items()):
    if size == 1:
      continue
    group = np.moveaxis(ids, i, 0).reshape(size, -1)[:, 0]
    across = len(np.unique(numbers[group]))
    group = group[: size // across]
    words = [f'{across} slices'] if across > 1 else []
    words += [
      f'{"xyz"[s.dim]} {s.members} of {slice_.shape[s.dim]}'
      + (f', one in {s.stride}' if s.stride > 1 else '')
      + (', a ring' if s.is_ring else '')
      for s in roofline.spans(coords[group], slice_)
    ]
    if len(np.unique(coords[group][:, -1])) > 1:
      words.append('both devices of a chip')
    found[axis] = '; '.join(words)
  return found


def _state_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  """Parameters by part, and the bytes of the training state."""
  count = lambda key: f'{facts[key]:,}'
  rows = [
    ('parameters', count('params_total')),
    ('active per token', count('params_active')),
  ]
  rows += [
    (f'  {part}', f'{c["total"]:,}, active {c["active"]:,}')
    for part, c in facts['components'].items()
  ]
  state = ('param_bytes', 'gradient_bytes', 'optimizer_bytes')
  return rows + [
    ('bytes of parameters', in_bytes(facts['param_bytes'])),
    ('  gradients', in_bytes(facts['gradient_bytes'])),
    ('  optimizer', in_bytes(facts['optimizer_bytes'])),
    ('  together', in_bytes(sum(facts[s] for s in state))),
  ]


def _folding_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  count = lambda key: f'{facts[key]:,}'
  recycles = facts['recycles']
  return [
    *_state_rows(facts),
    (
      'chains per step',
      f'{count("chains_per_step")}, {facts["crop"]} residues',
    ),
    ('residues per step', count('residues_per_step')),
    ('the run', f'{short(facts["residues"])} residues'),
    (
      'recycling',
      f'0 to {recycles} passes before the last; times count 1'
      if recycles
      else 'none',
    ),
  ]


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  if 'residues_per_step' in facts:
    return _folding_rows(facts)
  count = lambda key: f'{facts[key]:,}'
  flops = lambda key: short(facts[key], 'FLOP')
  rows = [
    *_state_rows(facts),
    (
      'model FLOPs per token',
      f'{flops("flops_per_token_forward")} forward,'
      f' {flops("flops_per_token_train")} training',
    ),
    (
      'executed FLOPs per token',
      f'{flops("executed_flops_per_token_forward")} forward,'
      f' {flops("executed_flops_per_token_train")} training',
    ),
    (
      'optimizer FLOPs per token',
      f'{short(facts["flops_per_token_optimizer"])}FLOP, by all parameters'
      " over a step's tokens",
    ),
    ('tokens per step', count('tokens_per_step')),
    ('the run', f'{short(facts["tokens"])} tokens, {flops("flops")}'),
    (
      f'chip time at a stated MFU of {facts["stated_mfu"]:.0%}',
      ', '.join(
        f'{name} {in_hours(h)}' for name, h in facts['chip_hours'].items()
      ),
    ),
    (
      'expected drops',
      f'{facts["drop_rate_balanced"]:.3%} balanced,'
      f' {facts["drop_rate_cv03"]:.3%} at a load variation of 0.3',
    ),
  ]
  rows += [
    (
      f'  {name}',
      f'{facts_of["share"]:.1%} of tokens, {facts_of["flops_share"]:.1%} of'
      ' FLOPs, drops'
      f' {facts_of["drop_rate_balanced"]:.3%} balanced,'
      f' {facts_of["drop_rate_cv03"]:.3%} at a load variation of 0.3',
    )
    for name, facts_of in facts.get('modalities', {}).items()
  ]
  return rows


def _slice_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  rows = [
    ('chips', f'{facts["chips"]:,} ({facts["devices"]:,} devices)'),
    ('mesh', ' '.join(f'{a}={n}' for a, n in facts['mesh'].items())),
  ]
  rows += [
    (f'  {axis} lies along', where)
    for axis, where in facts['axes_on_torus'].items()
  ]
  rows += _memory_rows(facts)
  rows += [
    ('executed per chip', short(facts['executed_flops_per_chip'], 'FLOP')),
    ('HBM traffic per chip', short(facts['hbm_traffic_per_chip'], 'B')),
    (
      'sent per chip',
      f'{short(facts["collective_bytes_per_chip"], "B")}, and as much received',
    ),
  ]
  if 'num_slices' in facts:
    sent = short(facts['network_bytes_per_chip'], 'B')
    rows.append(('  to other slices', f"{sent} over the data centre's network"))
  rows += _time_rows(facts)
  rows += [
    (
      'compiled in',
      f'{facts["compile_seconds"]:.0f} s'
      + (' (earlier; read from the cache)' if facts['is_cached'] else ''),
    ),
    ('program', facts['compiled']),
  ]
  if facts['unknown_loops']:
    rows.append(('loops counted once', ', '.join(facts['unknown_loops'])))
  return rows


def _memory_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  size = lambda key: in_bytes(facts[key])
  rows = [
    ('arguments per device', size('argument_bytes')),
    ('  temporaries', size('temp_bytes')),
    ('  the program itself', size('code_bytes')),
    (
      '  peak',
      f'{size("peak_bytes")} of {size("hbm_bytes")}, headroom'
      f' {facts["headroom"]:.1%}',
    ),
  ]
  if facts['devices'] > facts['chips']:
    per_chip = f'{size("peak_bytes_per_chip")} of {size("hbm_bytes_per_chip")}'
    rows.append(('  peak per chip', per_chip))
  return rows


def _time_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  time = lambda key: in_seconds(facts[key])
  mfu = lambda key: f', MFU {facts[key]:.1%}' if key in facts else ''
  rows = [
    (
      'step without overlap',
      time('step_seconds_no_overlap') + mfu('mfu_no_overlap'),
    ),
    (
      'step with full overlap',
      f'{time("step_seconds_full_overlap")}{mfu("mfu_full_overlap")}, bound by'
      f' {facts["bound"]}',
    ),
  ]
  rows += [
    (f'  {resource} busy', in_seconds(seconds))
    for resource, seconds in facts['busy_seconds'].items()
    if seconds
  ]
  own = 'none for this chip'
  if facts['compiler_seconds'] is not None:
    own = (
      f'{time("compiler_seconds")} with loops multiplied out,'
      f' {time("compiler_seconds_once")} with each loop counted once'
    )
  if 'num_slices' not in facts:
    rows.append((
      'a second slice would add',
      f'{time("network_seconds_two_slices")} for gradients over the data'
      " centre's network, which these times leave out",
    ))  # fmt: skip
  return rows + [("compiler's own estimate", own)]


_TRANSFER_HEAD = ('collective', 'mesh axes', 'times', 'sent', 'time')


def _transfer_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
  return [
    (
      row['kind'],
      '+'.join(row['axes']) + ' between slices' * row['is_network'],
      f'{row["count"]:,}',
      short(row['bytes'], 'B'),
      in_seconds(row['seconds']),
    )
    for row in facts['collectives']
  ]


_FORECAST_HEAD = ('layout', 'peak', 'step', 'MFU', 'bound', 'compiled')


def _forecast_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
  rows = []
  for row in facts['search']['best']:
    compiled = row.get('compiled')
    result = ''
    if compiled:
      result = compiled.get('does_not_fit') or (
        f'{in_bytes(compiled["peak_bytes"])},'
        f' {in_seconds(compiled["step_seconds_no_overlap"])},'
        f' MFU {compiled["mfu_no_overlap"]:.1%}'
      )
    rows.append((
      ' '.join(row['changes']),
      in_bytes(row['peak_bytes']),
      in_seconds(row['seconds']),
      f'{row["mfu"]:.1%}',
      row['bound'],
      result,
    ))  # fmt: skip
  return rows


def _sections(
  facts: dict[str, Any],
) -> Iterator[tuple[str, tuple[str, ...] | None, list[tuple[str, ...]]]]:
  """Yields (title, head of the table or None, rows) of each table."""
  yield 'The model', None, _model_rows(facts)
  if 'search' in facts:
    title = f'{facts["topology"]}: {facts["search"]["fit"]} layouts fit'
    yield (
      f'{title}; forecasts without overlap',
      _FORECAST_HEAD,
      _forecast_rows(facts),
    )
    warned = {w for row in facts['search']['best'] for w in row['warnings']}
    if warned:
      yield (
        'Rules of thumb that some layouts break',
        None,
        [(w,) for w in sorted(warned)],
      )
    refused = facts['search']['refused'].items()
    rows = sorted(refused, key=lambda item: -item[1])
    yield 'Refused', None, [(f'{count:,}', why) for why, count in rows]
  elif 'does_not_fit' in facts:
    rows = [('the compiler says', facts['does_not_fit'])]
    rows += [(k['knob'], k['effect']) for k in facts['knobs']]
    yield f'{facts["topology"]}: does not fit', None, rows
  elif 'topology' in facts:
    yield facts['topology'], None, _slice_rows(facts)
    yield 'Collectives of a step', _TRANSFER_HEAD, _transfer_rows(facts)


def text(facts: dict[str, Any]) -> str:
  """Writes a plan as tables for a terminal."""
  lines = []
  for title, head, rows in _sections(facts):
    rows = ([head] if head else []) + list(rows)
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    widths[-1] = 0
    lines += [title, '']
    lines += [
      '  '
      + '  '.join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
      for r in rows
    ]
    lines.append('')
  return '\n'.join(lines).rstrip()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem
auto;
  padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem }
td, th { text-align: left; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid #ddd; vertical-align: top }
.bar { background: #e8e8e8; height: 1.1rem; margin: .15rem 0 }
.bar div { background: #2a6fb0; height: 100% }
"""


def _bars(
  title: str, values: dict[str, float], as_text: Callable[[float], str]
) -> str:
  most = max(values.values(), default=0) or 1
  rows = ''.join(
    f'<tr><td>{html_lib.escape(name)}</td><td style="width:60%"><div class=bar>'
    f'<div style="width:{100 * value / most:.1f}%"></div></div></td>'
    f'<td>{as_text(value)}</td></tr>'
    for name, value in values.items()
  )
  return f'<h2>{html_lib.escape(title)}</h2><table>{rows}</table>'


def html(facts: dict[str, Any], source: str) -> str:
  """Writes a plan as a self-contained page, with tables and bar charts."""
  body = [f'<h1>Plan</h1><p><code>{html_lib.escape(source)}</code></p>']
  if 'busy_seconds' in facts:
    busy = {k: v for k, v in facts['busy_seconds'].items() if v}
    body.append(_bars('Busy time of a step', busy, in_seconds))
    memory = {
      'arguments': facts['argument_bytes'],
      'peak': facts['peak_bytes'],
      'HBM': facts['hbm_bytes'],
    }
    body.append(_bars('Memory of a device', memory, in_bytes))
  for title, head, rows in _sections(facts):
    cells = lambda row, tag: ''.join(
      f'<{tag}>{html_lib.escape(c)}</{tag}>' for c in row
    )
    lines = [f'<tr>{cells(head, "th")}</tr>'] if head else []
    lines += [f'<tr>{cells(row, "td")}</tr>' for row in rows]
    body.append(f'<h2>{html_lib.escape(title)}</h2><table>')
    body += [*lines, '</table>']
  return (
    '<!doctype html><html lang=en><meta charset=utf-8><title>Plan</title>'
    f'<style>{_STYLE}</style><body>{"".join(body)}</body></html>\n'
  )
