"""Draws the figures of a page as SVG, in the colours of the page.

Matplotlib draws in the placeholder colours below. In the text of the SVG, each
placeholder is replaced by a CSS variable. So the same figure works in light and
in dark mode.
"""

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter


class Colors(NamedTuple):
  """Colours of a figure; `soft` is for labels, `series` for lines."""

  ink: str
  grid: str
  soft: str
  series: tuple[str, ...]


# The placeholders; page_style.html defines the real colours.
PAGE = Colors(
  '#010101', '#020202', '#030303', ('#040404', '#050505', '#060606', '#070707')
)
PAPER = Colors(
  '#1d1f23', '#dcdad4', '#666b73', ('#1f5fa8', '#b3402e', '#2c7a4b', '#8a5a00')
)
_VARIABLES = {
  PAGE.ink: 'var(--ink)',
  PAGE.grid: 'var(--grid)',
  PAGE.soft: 'var(--soft)',
  **{color: f'var(--series{i})' for i, color in enumerate(PAGE.series, 1)},
}
_MAX_POINTS = 600

# (x values, y values) of one line.
Line = tuple[Sequence[float], Sequence[float]]


def style(
  colors: Colors, grid: bool = True
) -> contextlib.AbstractContextManager:
  """A context manager that sets Matplotlib's style for a figure."""
  return matplotlib.rc_context({
    'figure.facecolor': 'none' if colors is PAGE else 'white',
    'axes.facecolor': 'none',
    'svg.fonttype': 'none',
    'svg.hashsalt': 'report',
    'font.size': 9.5,
    'text.color': colors.ink,
    'axes.labelcolor': colors.soft,
    'axes.edgecolor': colors.grid,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': grid,
    'axes.axisbelow': True,
    'grid.color': colors.grid,
    'grid.linewidth': 0.7,
    'xtick.color': colors.grid,
    'ytick.color': colors.grid,
    'xtick.labelcolor': colors.soft,
    'ytick.labelcolor': colors.soft,
    'legend.frameon': False,
    'lines.solid_capstyle': 'round',
  })  # fmt: skip


def curves(
  train: Line,
  held_out: dict[str, Line],
  levels: dict[str, float],
  label: str,
  size: tuple[float, float] = (9.2, 3.7),
) -> str:
  """Draws a training curve, held-out curves and horizontal levels.

  Args:
    train: the training curve, one point per step. If there are many points, the
      figure shows them as a faint line, and their moving average as a strong
      line.
    held_out: name -> held-out curve, with few points.
    levels: name -> height of a horizontal line.
    label: label of the y axis.
    size: width and height in inches.
  """
  with style(PAGE):
    figure, axes = _axes(size)
    x, y = thin(*train)
    noisy = len(y) > 30
    if noisy:
      axes.plot(x, y, color=PAGE.series[0], linewidth=0.8, alpha=0.3)
    name = 'training' + (' (moving average)' if noisy else '')
    axes.plot(x, smooth(y), color=PAGE.series[0], linewidth=1.9, label=name)
    colors = itertools.cycle(PAGE.series[1:])
    for name, (xs, ys) in held_out.items():
      axes.plot(xs, ys, 'o-', color=next(colors), lw=1.5, ms=4.5, label=name)
    _limit(
      axes,
      y,
      [*levels.values(), *(v for _, ys in held_out.values() for v in ys)],
    )
    _levels(axes, levels)
    axes.set(xlabel='step', ylabel=label)
    if held_out:
      axes.legend(loc='upper right', bbox_to_anchor=(1, 1.13), ncols=3)
    return svg(figure, label)


def _levels(axes: Axes, levels: dict[str, float]) -> None:
  """Draws dashed horizontal lines; moves names that would overlap."""
  low, high = axes.get_ylim()
  above = math.inf
  for name, level in sorted(levels.items(), key=lambda pair: -pair[1]):
    is_close = above - level < 0.08 * (high - low)
    offset, side = (-3, 'top') if is_close else (3, 'bottom')
    axes.axhline(level, color=PAGE.soft, linewidth=1.1, linestyle=(0, (5, 4)))
    axes.annotate(
      f'{name} {level:.2f}', (1, level), (-3, offset),
      color=PAGE.soft, xycoords=('axes fraction', 'data'),
      textcoords='offset points', ha='right', va=side,
    )  # fmt: skip
    above = level


def small(line: Line, label: str, ticks: str, scale: str) -> str:
  """Draws a small figure with one quantity by step.

  Args:
    line: one point per step.
    label: title above the figure.
    ticks: format of the numbers on the y axis, such as {x:.0%}.
    scale: scale of the y axis: 'fit' (fits the values), 'log', 'zero' (includes
      0), or 'exact' (fits the values, without a moving average).
  """
  with style(PAGE):
    figure, axes = _axes((4.4, 2.3))
    x, y = thin(*line)
    if scale == 'exact':
      axes.plot(x, y, color=PAGE.series[0], linewidth=1.7)
    else:
      if len(y) > 30:
        axes.plot(x, y, color=PAGE.series[0], linewidth=0.7, alpha=0.3)
      axes.plot(x, smooth(y), color=PAGE.series[0], linewidth=1.7)
      _limit(axes, y, [0.0] if scale == 'zero' else [])
    if scale == 'log' and y.max() > 10 * y.min() > 0:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_minor_formatter(NullFormatter())
      axes.set_ylim(y.min() * 0.9, y.max() * 1.1)
    axes.yaxis.set_major_formatter(ticks)
    axes.set_title(label, loc='left', size=10)
    return svg(figure, label)


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
  figure = Figure(size, layout='constrained')
  axes = figure.subplots()
  axes.margins(x=0.01)
  axes.xaxis.get_major_locator().set_params(integer=True, nbins=7)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  return figure, axes


def thin(
  x: Sequence[float], y: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Averages neighbouring points, so that at most `_MAX_POINTS` remain."""
  x, y = np.asarray(x, float), np.asarray(y, float)
  parts = min(len(x), _MAX_POINTS)
  means = [
    np.array([part.mean() for part in np.array_split(a, parts)]) for a in (x, y)
  ]
  return means[0], means[1]


def smooth(y: np.ndarray) -> np.ndarray:
  """Returns the centred moving average over 1/40 of the points.

  Fewer than 80 points are returned unchanged.
  """
  width = len(y) // 40
  if width < 2 or len(y) <= 30:
    return y
  kernel = np.ones(width)
  weights = np.convolve(np.ones(len(y)), kernel, 'same')
  return np.convolve(y, kernel, 'same') / weights


def _limit(axes: Axes, y: np.ndarray, others: Sequence[float]) -> None:
  """Limits the y axis, so that high values of the first steps are cut off."""
  low = min(y.min(), *others, y[-1])
  high = max(np.quantile(y, 0.97) if len(y) > 30 else y.max(), *others, low)
  if high > low:
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def can_draw(text: str) -> bool:
  """Whether matplotlib's font has every character of a text.

  The font has no Chinese characters. This matters only for PNG pictures: the
  text of an SVG is drawn by the program that shows it, with another font.
  """
  font = font_manager.get_font(
    font_manager.findfont(font_manager.FontProperties())
  )
  return set(map(ord, text)) <= font.get_charmap().keys()


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
  """A context manager that hides warnings about missing characters.

  Warnings do not matter for an SVG: the program that shows it draws the text.
  """
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', r'Glyph \d+ .* missing from font')
    yield


def svg(figure: Figure, label: str) -> str:
  """Makes an <svg> element of a figure, for the HTML of a page."""
  stream = io.StringIO()
  with without_glyph_warnings():
    FigureCanvasSVG(figure).print_svg(stream, metadata={'Date': None})
  text = stream.getvalue()
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  # Matplotlib's CSS must not change the page outside the SVG.
  text = text.replace('*{', 'svg *{')
  for color, variable in _VARIABLES.items():
    text = text.replace(color, variable)
  # Without a fixed size, the figure scales with the page. Screen readers read
  # the label.
  text = text[text.index('<svg') :].replace(
    '<svg', f'<svg role="img" aria-label="{label}"', 1
  )
  return re.sub(r' (width|height)="[\d.]+pt"', '', text, count=2)
