"""Shows which experts are used for which corpus."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from moe.report.figures import PAGE, style, svg

_MAX_LAYERS = 4
_NAMED = 3  # Number of experts that the table names for each corpus.


class Corpora(NamedTuple):
  """A figure and a table of the loads of the experts, by corpus.

  Attributes:
    figure: a heat map for each of at most four sparse layers, with a row for
      each corpus and a column for each expert.
    rows: rows of cells, the header first. Each other row is a corpus, with a
      cell for each of these layers. A cell compares the loads of the corpus
      with the mean loads over all corpora. It has the share of the load that
      would have to move to other experts to give the mean loads, and the
      experts with the largest ratio to the mean.
  """

  figure: str
  rows: list[list[str]]


def shares(evaluation: dict[str, Any]) -> dict[str, np.ndarray]:
  """Corpus -> share of the load [layer, expert]; {} for a dense model.

  Args:
    evaluation: task -> its scores, from a record of eval.jsonl. Evaluation
      drops no tokens, so its loads are the choices of the router.
  """
  loads = {
    task: np.array(scores['layers']['load'], float)
    for task, scores in evaluation.items()
    if 'load' in scores.get('layers', {})
  }
  return {
    task: load / np.maximum(load.sum(-1, keepdims=True), 1e-9)
    for task, load in loads.items()
  }


def corpora(loads: Mapping[str, ArrayLike]) -> Corpora | None:
  """Makes `Corpora`; None for fewer than two corpora.

  Args:
    loads: corpus -> share of the load [layer, expert], from `shares`.
  """
  if len(loads) < 2:
    return None
  share = np.stack(list(loads.values()))
  return Corpora(_figure(list(loads), share), table(loads))


def table(loads: Mapping[str, ArrayLike]) -> list[list[str]]:
  """Makes `Corpora.rows`; the arguments are those of `corpora`."""
  names, share = list(loads), np.stack(list(loads.values()))
  mean = share.mean(0)
  moved = 0.5 * np.abs(share - mean).sum(-1)
  ratio = share / np.maximum(mean, 1e-9)
  layers = _shown(share.shape[1])
  header = ['corpus', *(f'layer {layer}' for layer in layers)]
  rows = [header]
  for i, name in enumerate(names):
    cells = []
    for layer in layers:
      top = np.argsort(-ratio[i, layer])[:_NAMED]
      experts = ', '.join(f'{e} ({ratio[i, layer, e]:.1f}x)' for e in top)
      cells.append(f'{moved[i, layer]:.0%}: {experts}')
    rows.append([name, *cells])
  return rows


def _shown(layers: int) -> np.ndarray:
  return (
    np.linspace(0, layers - 1, min(layers, _MAX_LAYERS)).round().astype(int)
  )


def _figure(names: list[str], share: np.ndarray) -> str:
  experts = share.shape[-1]
  layers = _shown(share.shape[1])
  with style(PAGE, grid=False):
    height = 0.5 + len(layers) * (0.35 + 0.22 * len(names))
    figure = Figure((9.2, height), layout='constrained')
    panels = figure.subplots(len(layers), 1, squeeze=False, sharex=True)[:, 0]
    for axes, layer in zip(panels, layers, strict=True):
      image = axes.imshow(
        share[:, layer] * experts, aspect='auto', vmin=0, vmax=3,
        cmap='viridis', interpolation='none',
      )  # fmt: skip
      axes.set_yticks(range(len(names)), names)
      axes.set_title(f'sparse layer {layer}', loc='left', size=9.5)
      axes.spines[:].set_visible(False)
    panels[-1].set_xlabel('expert')
    bar = figure.colorbar(image, ax=panels, extend='max', shrink=0.9, pad=0.015)
    bar.outline.set_visible(False)
    bar.set_label('load, 1 = even share')
    return svg(figure, 'load of each expert by corpus')
