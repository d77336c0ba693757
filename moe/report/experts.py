"""Makes figures and a table about the routers of a run, by sparse layer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from moe.report.figures import PAGE, smooth, style, svg, thin
from moe.train.watch import Watch
from moe.types import MODALITIES

_MAX_COLUMNS = 160
_MAX_LAYERS = 12

# (key of a record's 'layers', title of the figure, column header, format).
_NUMBERS = (
  ('max_over_mean', 'Busiest expert over the mean', 'busiest / mean', '.2f'),
  ('variation', 'Variation of the load', 'variation', '.2f'),
  ('entropy', 'Entropy of the router [nats]', 'entropy [nats]', '.2f'),
  ('confidence', 'Probability of the first choice', 'first choice', '.2f'),
  ('dropped_fraction', 'Dropped tokens', 'dropped', '.2%'),
  ('dropped_receiver_fraction', 'Dropped by receiver', 'by receiver', '.2%'),
  ('padding_fraction', 'Padding', 'padding', '.1%'),
  ('entropy_text', 'Entropy of the router, text', 'entropy of text', '.2f'),
  ('entropy_image', 'Entropy, image codes', 'entropy of images', '.2f'),
  ('dropped_fraction_text', None, 'dropped text', '.2%'),
  ('dropped_fraction_image', None, 'dropped images', '.2%'),
  ('entropy_protein', 'Entropy, proteins', 'entropy of proteins', '.2f'),
  ('dropped_fraction_protein', None, 'dropped proteins', '.2%'),
  ('bias_norm', 'Norm of the router bias', 'bias norm', '.3g'),
  ('bytes_exchanged', None, 'bytes exchanged', ',.0f'),
)


class ExpertFigures(NamedTuple):
  """Figures and a table about the routers of a run.

  Attributes:
    loads: figures with the load of each expert, as (title, <svg> element): of
      all tokens, then of each modality that the router tells apart.
    curves: figure with the other quantities, as an <svg> element.
    header: column headers of the table.
    rows: rows of the table, one for each sparse layer. Numbers are means over
      the last tenth of the logged steps.
  """

  loads: list[tuple[str, str]]
  curves: str
  header: list[str]
  rows: list[list[str]]


def experts(
  records: Sequence[dict[str, Any]], run: Mapping[str, Any]
) -> ExpertFigures | None:
  """Makes `ExpertFigures` from a run's records; None for a dense model.

  Args:
    records: the records of the run's log.
    run: the facts in run.json. They may have the numbers of experts that are
      reserved for each modality.
  """
  records = [r for r in records if 'load' in r.get('layers', {})]
  if not records:
    return None
  steps = [record['step'] for record in records]
  load_SLE = np.array([record['layers']['load'] for record in records])
  numbers = _numbers(records, load_SLE)
  watch = Watch(1.0)
  watch.resume(records)
  titles = {'load': 'All tokens'}
  titles |= {f'load_{name}': f'Tokens of {name} alone' for name in MODALITIES}
  by_name = {
    name: np.array([record['layers'][name] for record in records])
    for name in titles
    if all(name in record['layers'] for record in records)
  }
  return ExpertFigures(
    [(titles[name], loads(steps, load)) for name, load in by_name.items()],
    curves(steps, numbers),
    *_table(numbers, watch, by_name, _is_open(run, load_SLE.shape[2])),
  )


def _numbers(
  records: list[dict[str, Any]], load_SLE: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns key -> values [steps, layers].

  Two keys are computed from the loads. The other keys are those of `_NUMBERS`
  that every record has.
  """
  mean_SL = np.maximum(load_SLE.mean(2), 1e-9)
  found = {
    'max_over_mean': load_SLE.max(2) / mean_SL,
    'variation': load_SLE.std(2) / mean_SL,
  }
  for key, *_ in _NUMBERS:
    if all(key in record['layers'] for record in records):
      rows = [record['layers'][key] for record in records]
      # The log has null for a number that is not finite, and null becomes NaN
      # here.
      found[key] = np.array(rows, float)
  return found


def _is_open(run: Mapping[str, Any], experts: int) -> dict[str, np.ndarray]:
  """Modality -> bool [E], whether its tokens may use each expert.

  The first experts are reserved for the modalities, in the order of
  `MODALITIES`; see `gates.ModalityGrouped`.
  """
  keys = [f'experts_reserved_{name}' for name in MODALITIES]
  counts = [run[key] for key in keys if key in run]
  owner_E = np.full(experts, -1)
  owner_E[: sum(counts)] = np.repeat(np.arange(len(counts)), counts)
  return {
    name: (owner_E < 0) | (owner_E == number) | (number >= len(counts))
    for number, name in enumerate(MODALITIES)
  }


def _table(
  numbers: dict[str, np.ndarray],
  watch: Watch,
  load_SLE: dict[str, np.ndarray],
  is_open_E: dict[str, np.ndarray],
) -> tuple[list[str], list[list[str]]]:
  # For each modality, the number of open experts without a token of it.
  unused_L = {}
  for name in MODALITIES:
    if f'load_{name}' in load_SLE:
      is_idle_LE = _last(load_SLE[f'load_{name}']).sum(0) == 0
      unused_L[f'idle for {name}'] = (is_idle_LE & is_open_E[name]).sum(1)
  shown = [row for row in _NUMBERS if row[0] in numbers]
  heads = [head for _, _, head, _ in shown]
  header = ['sparse layer', *heads, *unused_L, 'idle experts']
  last = {key: _last(values).mean(axis=0) for key, values in numbers.items()}
  rows = []
  for layer, dead_E in enumerate(watch.dead_LE):
    cells = [format(last[key][layer], form) for key, _, _, form in shown]
    idle = ', '.join(map(str, np.flatnonzero(dead_E))) or 'none'
    unused = [str(count_L[layer]) for count_L in unused_L.values()]
    rows.append([str(layer), *cells, *unused, idle])
  return header, rows


def _last(values: np.ndarray) -> np.ndarray:
  """The values of the last tenth of the steps."""
  return values[-max(1, len(values) // 10) :]


def curves(steps: Sequence[int], numbers: dict[str, np.ndarray]) -> str:
  """Draws a panel per quantity, with lines for at most `_MAX_LAYERS` layers."""
  shown = [
    (numbers[key], title, form)
    for key, title, _, form in _NUMBERS
    if title and key in numbers and (np.any(numbers[key]) or 'drop' not in key)
  ]
  layers = shown[0][0].shape[1]
  every = _spread(layers)
  # Both ends of the colour scale are left out: one end is invisible on a white
  # page, the other on a black page.
  colors = matplotlib.colormaps['viridis'](np.linspace(0.25, 0.9, len(every)))
  with style(PAGE):
    figure, panels = _panels(len(shown), 0.5)
    for axes, (values_SL, title, form) in zip(panels, shown, strict=True):
      for layer, color in zip(every, colors, strict=True):
        x, y = thin(steps, values_SL[:, layer])
        axes.plot(x, smooth(y), color=color, linewidth=1.4, label=f'{layer}')
      axes.set_title(title, loc='left', size=9.5)
      axes.margins(x=0.01)
      axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
      axes.yaxis.get_major_locator().set_params(nbins=5)
      if form.endswith('%'):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    lines, names = panels[0].get_legend_handles_labels()
    no_line = Line2D([], [], linestyle='none')
    figure.supxlabel('step', color=PAGE.soft, size=9.5)
    figure.legend(
      [no_line, *lines], ['sparse layer', *names], loc='outside upper right',
      ncols=1 + len(names), columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip
    return svg(figure, 'router by step and sparse layer')


def _panels(number: int, margin: float) -> tuple[Figure, list[Axes]]:
  """Makes a figure with `number` empty panels, at most three in a row."""
  columns = 2 if number == 4 else min(3, number)
  rows = -(-number // columns)
  figure = Figure((9.2, 1.9 * rows + margin), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
  for axes in grid.flat[number:]:
    axes.remove()
  for axes in grid.flat[max(0, number - columns) : number]:
    axes.tick_params(labelbottom=True)
  return figure, list(grid.flat[:number])


def _spread(layers: int) -> np.ndarray:
  """Indices of all layers, or of `_MAX_LAYERS` layers at equal distances."""
  every = np.linspace(0, layers - 1, min(layers, _MAX_LAYERS))
  return every.round().astype(int)


def loads(steps: Sequence[int], load_SLE: np.ndarray) -> str:
  """Draws load by step and expert: heat maps of at most `_MAX_LAYERS` layers.

  A load of 1 is the mean over experts.
  """
  load_SLE = _columns(np.asarray(load_SLE, float) * np.shape(load_SLE)[2])
  layers, experts = load_SLE.shape[1:]
  every = _spread(layers)
  with style(PAGE, grid=False):
    figure, panels = _panels(len(every), 0.3)
    for axes, layer in zip(panels, every, strict=True):
      image = axes.imshow(
        load_SLE[:, layer].T, aspect='auto', vmin=0, vmax=2, cmap='viridis',
        interpolation='none', origin='lower',
        extent=(steps[0] - 1, steps[-1], -0.5, experts - 0.5),
      )  # fmt: skip
      axes.set_title(f'sparse layer {layer}', loc='left', size=9.5)
      axes.yaxis.get_major_locator().set_params(integer=True)
      axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
      axes.spines[:].set_visible(False)
    figure.supxlabel('step', color=PAGE.soft, size=9.5)
    figure.supylabel('expert', color=PAGE.soft, size=9.5)
    bar = figure.colorbar(image, ax=panels, extend='max', shrink=0.9, pad=0.015)
    bar.outline.set_visible(False)
    bar.set_label('load, 1 = even share')
    return svg(figure, 'load of each expert by step')


def _columns(load_SLE: np.ndarray) -> np.ndarray:
  """Averages neighbouring steps, so that at most `_MAX_COLUMNS` remain."""
  parts = np.array_split(load_SLE, min(len(load_SLE), _MAX_COLUMNS))
  return np.stack([part.mean(axis=0) for part in parts])
