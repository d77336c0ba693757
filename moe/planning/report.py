"""A plan as text, and as a page that needs nothing else."""

import collections
import html as html_lib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moe.scale import roofline
from moe.scale.topology import Slice

GIB = 2**30
_UNITS = ((1e24, 'Y'), (1e21, 'Z'), (1e18, 'E'), (1e15, 'P'), (1e12, 'T'),
          (1e9, 'G'), (1e6, 'M'), (1e3, 'k'))  # fmt: skip


def short(value: float) -> str:
  """Four digits and a unit: 1748943388672 is 1.749 T."""
  for size, unit in _UNITS:
    if abs(value) >= size:
      return f'{value / size:.4g} {unit}'
  return f'{value:.4g} '


def gib(value: float) -> str:
  """Bytes in GiB."""
  return f'{value / GIB:,.2f} GiB'


def collectives(
  transfers: Sequence[roofline.Transfer], seconds: Sequence[float]
) -> list[dict[str, Any]]:
  """Transfers added up by kind and mesh axes, the slowest first."""
  rows = collections.defaultdict(lambda: [0, 0.0, 0.0])
  for transfer, taken in zip(transfers, seconds, strict=True):
    row = rows[transfer.kind, transfer.axes]
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
    }
    for (kind, axes), (count, moved, taken) in sorted(
      rows.items(), key=lambda item: -item[1][2]
    )
  ]


def axes_on_torus(mesh: Mesh, slice_: Slice) -> dict[str, str]:
  """Where each mesh axis lies: 'x 2 of 8; y 16 of 16, a ring' and so on."""
  coords = roofline.coordinates(list(mesh.devices.flat))
  ids = np.arange(mesh.size).reshape(mesh.devices.shape)
  placed = {}
  for i, (axis, size) in enumerate(mesh.shape.items()):
    if size == 1:
      continue
    group = np.moveaxis(ids, i, 0).reshape(size, -1)[:, 0]
    words = [
      f'{"xyz"[s.dim]} {s.members} of {slice_.shape[s.dim]}'
      + (f', one in {s.stride}' if s.stride > 1 else '')
      + (', a ring' if s.is_ring else '')
      for s in roofline.spans(coords[group], slice_)
    ]
    if len(np.unique(coords[group][:, -1])) > 1:
      words.append('both devices of a chip')
    placed[axis] = '; '.join(words)
  return placed


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
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
  rows += [
    ('bytes of parameters', gib(facts['param_bytes'])),
    ('  gradients', gib(facts['gradient_bytes'])),
    ('  optimizer', gib(facts['optimizer_bytes'])),
    ('  together', gib(sum(facts[s] for s in state))),
    (
      'model FLOPs per token',
      f'{short(facts["flops_per_token_forward"])}FLOP forward,'
      f' {short(facts["flops_per_token_train"])}FLOP training',
    ),
    (
      'executed FLOPs per token',
      f'{short(facts["executed_flops_per_token_forward"])}FLOP forward,'
      f' {short(facts["executed_flops_per_token_train"])}FLOP training',
    ),
    (
      'optimizer FLOPs per token',
      f'{short(facts["flops_per_token_optimizer"])}FLOP, by all parameters'
      " over a step's tokens",
    ),
    ('tokens per step', count('tokens_per_step')),
    (
      'the run',
      f'{short(facts["tokens"])}tokens, {short(facts["flops"])}FLOP',
    ),
    (
      f'chip-hours at a stated MFU of {facts["stated_mfu"]:.0%}',
      ', '.join(
        f'{name} {short(h).strip()}' for name, h in facts['chip_hours'].items()
      ),
    ),
    (
      'expected drops',
      f'{facts["drop_rate_balanced"]:.3%} balanced,'
      f' {facts["drop_rate_cv03"]:.3%} at a load variation of 0.3',
    ),
  ]
  return rows


def _slice_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
  hbm = facts['hbm_bytes']
  rows = [
    ('chips', f'{facts["chips"]:,} ({facts["devices"]:,} devices)'),
    ('mesh', ' '.join(f'{a}={n}' for a, n in facts['mesh'].items())),
  ]
  rows += [
    (f'  {axis} lies along', where)
    for axis, where in facts['axes_on_torus'].items()
  ]
  rows += [
    ('arguments per device', gib(facts['argument_bytes'])),
    ('  temporaries', gib(facts['temp_bytes'])),
    ('  the program itself', gib(facts['code_bytes'])),
    (
      '  peak',
      f'{gib(facts["peak_bytes"])} of {gib(hbm)}, headroom'
      f' {facts["headroom"]:.1%}',
    ),
  ]
  if facts['devices'] > facts['chips']:
    rows.append((
      '  peak per chip',
      f'{gib(facts["peak_bytes_per_chip"])} of'
      f' {gib(facts["hbm_bytes_per_chip"])}',
    ))  # fmt: skip
  rows += [
    ('executed per chip', f'{short(facts["executed_flops_per_chip"])}FLOP'),
    ('HBM traffic per chip', f'{short(facts["hbm_traffic_per_chip"])}B'),
    (
      'sent per chip',
      f'{short(facts["collective_bytes_per_chip"])}B, and as much received',
    ),
    (
      'step without overlap',
      f'{facts["step_seconds_no_overlap"]:.4f} s,'
      f' MFU {facts["mfu_no_overlap"]:.1%}',
    ),
    (
      'step with full overlap',
      f'{facts["step_seconds_full_overlap"]:.4f} s,'
      f' MFU {facts["mfu_full_overlap"]:.1%}, bound by {facts["bound"]}',
    ),
  ]
  rows += [
    (f'  {resource} busy', f'{seconds:.4f} s')
    for resource, seconds in facts['busy_seconds'].items()
    if seconds
  ]
  own = 'none for this chip'
  if facts['compiler_seconds'] is not None:
    own = (
      f'{facts["compiler_seconds"]:.4f} s, loops multiplied out'
      f' ({facts["compiler_seconds_once"]:.4f} s as it gives it)'
    )
  rows += [
    (
      'a second slice would add',
      f'{facts["network_seconds_two_slices"]:.4f} s for gradients over the data'
      " centre's network, apart from these times",
    ),
    ("compiler's own estimate", own),
    (
      'compiled in',
      f'{facts["compile_seconds"]:.0f} s'
      + (' (before; found again)' if facts['is_cached'] else ''),
    ),
    ('program', facts['compiled']),
  ]
  if facts['unknown_loops']:
    rows.append(('loops counted once', ', '.join(facts['unknown_loops'])))
  return rows


def _transfer_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
  return [
    (
      row['kind'],
      '+'.join(row['axes']),
      f'{row["count"]:,}',
      f'{short(row["bytes"])}B',
      f'{row["seconds"]:.4f} s',
    )
    for row in facts['collectives']
  ]


_TRANSFER_HEAD = ('collective', 'mesh axes', 'times', 'sent', 'seconds')


_FORECAST_HEAD = ('layout', 'peak', 'step', 'MFU', 'bound', 'compiled')


def _forecast_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
  rows = []
  for row in facts['search']['best']:
    made = row.get('compiled')
    said = ''
    if made:
      said = made.get('does_not_fit') or (
        f'{gib(made["peak_bytes"])}, {made["step_seconds_no_overlap"]:.3f} s,'
        f' MFU {made["mfu_no_overlap"]:.1%}'
      )
    rows.append((
      ' '.join(row['changes']),
      gib(row['peak_bytes']),
      f'{row["seconds"]:.3f} s',
      f'{row["mfu"]:.1%}',
      row['bound'],
      said,
    ))  # fmt: skip
  return rows


def _sections(facts: dict[str, Any]):
  """(title, head or None, rows) of each table."""
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
        'Rules of thumb that some break',
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
  """Tables for a terminal."""
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


def _bars(title: str, values: dict[str, float], unit: str) -> str:
  most = max(values.values(), default=0) or 1
  rows = ''.join(
    f'<tr><td>{html_lib.escape(name)}</td><td style="width:60%"><div class=bar>'
    f'<div style="width:{100 * value / most:.1f}%"></div></div></td>'
    f'<td>{value:.4g} {unit}</td></tr>'
    for name, value in values.items()
  )
  return f'<h2>{html_lib.escape(title)}</h2><table>{rows}</table>'


def html(facts: dict[str, Any], source: str) -> str:
  """One page, self-contained: the tables, and bars for memory and time."""
  body = [f'<h1>Plan</h1><p><code>{html_lib.escape(source)}</code></p>']
  if 'busy_seconds' in facts:
    busy = {k: v for k, v in facts['busy_seconds'].items() if v}
    body.append(_bars('Busy seconds of a step', busy, 's'))
    memory = {
      'arguments': facts['argument_bytes'] / GIB,
      'peak': facts['peak_bytes'] / GIB,
      'HBM': facts['hbm_bytes'] / GIB,
    }
    body.append(_bars('Memory of a device', memory, 'GiB'))
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
