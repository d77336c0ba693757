"""A page with folded chains that people can rotate; it needs no network."""

import pathlib
from collections.abc import Sequence

import markupsafe
import numpy as np

from moe import atomic_files
from moe.modalities.structure_writing import Origin
from moe.report import templates
from moe.runs.folded import Prediction

PAGE = 'index.html'
# Largest number of chains that a page draws; its table has all chains.
_DRAWN = 20
# (pLDDT from 0 to 1, colour), from very low to very high confidence.
_COLOURS = [
  [0.0, '#ff7d45'],
  [0.5, '#ff7d45'],
  [0.5, '#ffdb13'],
  [0.7, '#ffdb13'],
  [0.7, '#65cbf3'],
  [0.9, '#65cbf3'],
  [0.9, '#0053d6'],
  [1.0, '#0053d6'],
]


def write(
  directory: pathlib.Path,
  title: str,
  origin: Origin,
  found: Sequence[Prediction],
) -> pathlib.Path:
  """Writes the page, with drawings of the first chains.

  Args:
    directory: where the page is written.
    title: title of the page.
    origin: the model that folded the chains.
    found: at least one prediction.

  Returns:
    The file of the page.
  """
  import plotly.offline  # The import takes a second; only pages need it.

  rows = [('chain', 'residues', 'pLDDT', 'pTM')]
  for one in found:
    plddt = f'{100 * one.plddt.mean():.1f}'
    rows.append(
      (one.chain.name, str(one.chain.codes.size), plddt, f'{one.tm:.2f}')
    )
  text = templates.render(
    'fold_page.html',
    title=title,
    origin=origin,
    rows=rows,
    has_side_chains=any(one.chain.has_side_chains for one in found),
    script=markupsafe.Markup(plotly.offline.get_plotlyjs()),
    chains={one.chain.name: pictures(one) for one in found[:_DRAWN]},
  )
  path = pathlib.Path(directory) / PAGE
  atomic_files.write_file(path, text)
  return path


def pictures(one: Prediction) -> list[markupsafe.Markup]:
  """Drawings of the structure, the distances and the errors, as HTML."""
  from plotly import graph_objects  # The import is slow; only pages need it.

  place = one.chain.atoms[:, 1]
  label = [
    f'{letter}{number + 1}: {100 * plddt:.0f}'
    for number, (letter, plddt) in enumerate(
      zip(one.chain.sequence, one.plddt, strict=True)
    )
  ]
  colour = {
    'color': 100 * one.plddt,
    'colorscale': _COLOURS,
    'cmin': 0,
    'cmax': 100,
  }
  line = graph_objects.Scatter3d(
    x=place[:, 0],
    y=place[:, 1],
    z=place[:, 2],
    mode='lines+markers',
    text=label,
    hoverinfo='text',
    line={**colour, 'width': 8},
    marker={**colour, 'size': 4, 'colorbar': {'title': 'pLDDT'}},
  )
  structure = graph_objects.Figure(line)
  hidden = {'visible': False}
  structure.update_layout(
    title='CA atoms, coloured by pLDDT',
    scene={
      'xaxis': hidden,
      'yaxis': hidden,
      'zaxis': hidden,
      'aspectmode': 'data',
    },
    height=520,
    margin={'l': 0, 'r': 0, 't': 40, 'b': 0},
  )
  return [
    _part(structure),
    _part(_matrix('Predicted distances of CB atoms, Angstrom', one.distances)),
    _part(_matrix('Predicted aligned error, Angstrom', one.errors)),
  ]


def _matrix(title: str, values: np.ndarray):
  from plotly import graph_objects  # The import takes a second.

  figure = graph_objects.Figure(
    graph_objects.Heatmap(z=np.round(values, 1), colorscale='Viridis')
  )
  figure.update_layout(title=title, height=420, width=480)
  figure.update_yaxes(autorange='reversed', scaleanchor='x', title='residue')
  return figure


def _part(figure) -> markupsafe.Markup:
  html = figure.to_html(full_html=False, include_plotlyjs=False)
  return markupsafe.Markup(html)
