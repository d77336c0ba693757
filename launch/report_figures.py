"""The figures of a report, as SVG that takes its colours from the page.

Matplotlib draws with the placeholder colours below; in the text of the SVG each
becomes a CSS variable, so that one figure is readable in light and dark.
"""

import io
import itertools
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

_INK, _GRID, _SOFT = '#010101', '#020202', '#030303'
_SERIES = ('#040404', '#050505', '#060606', '#070707')
_VARIABLES = {
  _INK: 'var(--ink)',
  _GRID: 'var(--grid)',
  _SOFT: 'var(--soft)',
  **{color: f'var(--series{i})' for i, color in enumerate(_SERIES, 1)},
}
_STYLE = {
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
  'svg.fonttype': 'none',
  'svg.hashsalt': 'report',
  'font.size': 9.5,
  'text.color': _INK,
  'axes.labelcolor': _SOFT,
  'axes.edgecolor': _GRID,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': _GRID,
  'grid.linewidth': 0.7,
  'xtick.color': _GRID,
  'ytick.color': _GRID,
  'xtick.labelcolor': _SOFT,
  'ytick.labelcolor': _SOFT,
  'legend.frameon': False,
  'lines.solid_capstyle': 'round',
}
_MAX_POINTS = 600
_MAX_COLUMNS = 160
_MAX_LAYERS = 12

# (x values, y values) of one line.
Line = tuple[Sequence[float], Sequence[float]]


def curves(
  train: Line,
  held_out: dict[str, Line],
  levels: dict[str, float],
  label: str,
  size: tuple[float, float] = (9.2, 3.7),
) -> str:
  """A quantity of training beside held-out data and horizontal levels.

  Args:
    train: one point a step, drawn faintly, with its moving average over it.
    held_out: few points, by name.
    levels: horizontal lines, by name.
    label: of the y axis.
    size: width and height in inches.
  """
  with matplotlib.rc_context(_STYLE):
    figure, axes = _axes(size)
    x, y = _thin(*train)
    noisy = len(y) > 30
    if noisy:
      axes.plot(x, y, color=_SERIES[0], linewidth=0.8, alpha=0.3)
    name = 'training' + (' (moving average)' if noisy else '')
    axes.plot(x, _smooth(y), color=_SERIES[0], linewidth=1.9, label=name)
    colors = itertools.cycle(_SERIES[1:])
    for name, (xs, ys) in held_out.items():
      axes.plot(xs, ys, 'o-', color=next(colors), lw=1.5, ms=4.5, label=name)
    _limit(
      axes,
      y,
      [*levels.values(), *(v for _, ys in held_out.values() for v in ys)],
    )
    for name, level in levels.items():
      axes.axhline(level, color=_SOFT, linewidth=1.1, linestyle=(0, (5, 4)))
      axes.annotate(
        f'{name} {level:.2f}', (1, level), (-3, 3), color=_SOFT,
        xycoords=('axes fraction', 'data'), textcoords='offset points',
        ha='right',
      )  # fmt: skip
    axes.set(xlabel='step', ylabel=label)
    if held_out:
      axes.legend(loc='upper right', bbox_to_anchor=(1, 1.13), ncols=3)
    return _svg(figure, label)


def small(line: Line, label: str, ticks: str, scale: str) -> str:
  """One quantity by step, in a small frame.

  Args:
    line: one point a step.
    label: above the frame.
    ticks: format of the numbers at the y axis, such as {x:.0%}.
    scale: 'fit', 'log', 'zero' (from 0 on) or 'exact' (no moving average).
  """
  with matplotlib.rc_context(_STYLE):
    figure, axes = _axes((4.4, 2.3))
    x, y = _thin(*line)
    if scale == 'exact':
      axes.plot(x, y, color=_SERIES[0], linewidth=1.7)
    else:
      if len(y) > 30:
        axes.plot(x, y, color=_SERIES[0], linewidth=0.7, alpha=0.3)
      axes.plot(x, _smooth(y), color=_SERIES[0], linewidth=1.7)
      _limit(axes, y, [0.0] if scale == 'zero' else [])
    if scale == 'log' and y.max() > 10 * y.min() > 0:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_minor_formatter(NullFormatter())
      axes.set_ylim(y.min() * 0.9, y.max() * 1.1)
    axes.yaxis.set_major_formatter(ticks)
    axes.set_title(label, loc='left', size=10)
    return _svg(figure, label)


def loads(steps: Sequence[int], load_SLE: np.ndarray) -> str:
  """A heat map for each sparse layer: experts by step, 1 is an even share."""
  load_SLE = _columns(np.asarray(load_SLE, float) * np.shape(load_SLE)[2])
  layers, experts = load_SLE.shape[1:]
  every = np.linspace(0, layers - 1, min(layers, _MAX_LAYERS)).round()
  with matplotlib.rc_context({**_STYLE, 'axes.grid': False}):
    rows, columns = -(-len(every) // 3), min(3, len(every))
    figure = Figure((9.2, 1.9 * rows + 0.3), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(every) :]:
      axes.remove()
    panels = list(grid.flat[: len(every)])
    for axes, layer in zip(panels, every.astype(int), strict=True):
      image = axes.imshow(
        load_SLE[:, layer].T, aspect='auto', vmin=0, vmax=2, cmap='viridis',
        interpolation='none', origin='lower',
        extent=(steps[0] - 1, steps[-1], -0.5, experts - 0.5),
      )  # fmt: skip
      axes.set_title(f'sparse layer {layer}', loc='left', size=9.5)
      axes.yaxis.get_major_locator().set_params(integer=True)
      axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
      axes.spines[:].set_visible(False)
    figure.supxlabel('step', color=_SOFT, size=9.5)
    figure.supylabel('expert', color=_SOFT, size=9.5)
    bar = figure.colorbar(image, ax=panels, extend='max', shrink=0.9, pad=0.015)
    bar.outline.set_visible(False)
    bar.set_label('load, 1 = even share')
    return _svg(figure, 'load of each expert by step')


def _axes(size: tuple[float, float]):
  figure = Figure(size, layout='constrained')
  axes = figure.subplots()
  axes.margins(x=0.01)
  axes.xaxis.get_major_locator().set_params(integer=True, nbins=7)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  return figure, axes


def _thin(x: Sequence[float], y: Sequence[float]):
  """At most _MAX_POINTS points, each the mean of its neighbours."""
  x, y = np.asarray(x, float), np.asarray(y, float)
  parts = min(len(x), _MAX_POINTS)
  means = [
    np.array([part.mean() for part in np.array_split(a, parts)]) for a in (x, y)
  ]
  return means[0], means[1]


def _smooth(y: np.ndarray) -> np.ndarray:
  """Centred moving average over a fortieth of the points."""
  width = len(y) // 40
  if width < 2 or len(y) <= 30:
    return y
  kernel = np.ones(width)
  weights = np.convolve(np.ones(len(y)), kernel, 'same')
  return np.convolve(y, kernel, 'same') / weights


def _limit(axes, y: np.ndarray, others: Sequence[float]) -> None:
  """Keeps the first steps of a run from pressing the rest flat."""
  low = min(y.min(), *others, y[-1])
  high = max(np.quantile(y, 0.97) if len(y) > 30 else y.max(), *others, low)
  if high > low:
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def _columns(load_SLE: np.ndarray) -> np.ndarray:
  """At most _MAX_COLUMNS steps, each the mean of its neighbours."""
  parts = np.array_split(load_SLE, min(len(load_SLE), _MAX_COLUMNS))
  return np.stack([part.mean(axis=0) for part in parts])


def _svg(figure: Figure, label: str) -> str:
  """A figure as an <svg> element for use inside a page."""
  stream = io.StringIO()
  FigureCanvasSVG(figure).print_svg(stream, metadata={'Date': None})
  text = stream.getvalue()
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  text = text.replace('*{', 'svg *{')  # Their style is not for our page.
  for color, variable in _VARIABLES.items():
    text = text.replace(color, variable)
  # Scales with the page; a name for those who cannot see it.
  text = text[text.index('<svg') :].replace(
    '<svg', f'<svg role="img" aria-label="{label}"', 1
  )
  return re.sub(r' (width|height)="[\d.]+pt"', '', text, count=2)
