"""Writes a page with the scores of a folding model and of baselines."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from moe import atomic_files
from moe.evaluate.score import Score
from moe.modalities.structure_writing import Origin
from moe.report import templates
from moe.runs import protein_scores
from moe.runs.protein_scores import ChainScores, Confidence

PAGE, SCORES = 'protein_scores.html', 'protein_scores.json'
_SHOWN = ('lDDT', 'lDDT, separation >= 12', 'TM', 'GDT_TS', 'RMSD')
_GROUPS = {
  'all': 'All chains',
  'similar': 'Chains with a similar training chain',
  'novel': 'Chains without a similar training chain (alignment below 60)',
}


def table(
  rows: Sequence[tuple[str, str, Score, tuple[float, float, float]]],
  group: str,
) -> list[tuple[str, ...]]:
  """Makes a table with mean, interval and quartiles of a group's scores."""
  cells = [('score', 'mean', 'low', 'high', 'quartile', 'median', '', 'chains')]
  cells[0] = (*cells[0][:6], 'quartile 3', 'chains')
  for name, _, score, quartiles in rows:
    if name == group:
      numbers = (score.value, score.low, score.high, *quartiles)
      texts = (f'{number:.3f}' for number in numbers)
      cells.append((score.name, *texts, str(score.n)))
  return cells


def as_text(found: Sequence[ChainScores], command: str) -> str:
  """Writes the main scores of the model and of baselines as text."""
  rows = protein_scores.summarised(found, command)
  means = {(group, score.name): score.value for group, _, score, _ in rows}
  names = list(found[0].scores[protein_scores.HELIX])
  text = lambda value: '' if np.isnan(value) else f'{value:.3f}'
  lines = []
  for group, title in _GROUPS.items():
    count = next((score.n for name, _, score, _ in rows if name == group), 0)
    if not count:
      continue
    heads = ''.join(f'{kind:>14}' for kind in protein_scores.KINDS)
    lines += ['', f'{title}: {count}', f'{"":33}{heads}']
    for name in names:
      values = (
        means.get((group, f'{kind}: {name}'), float('nan'))
        for kind in protein_scores.KINDS
      )
      cells = ''.join(f'{text(value):>14}' for value in values)
      lines.append(f'{name:33}{cells}'.rstrip())
    lines += [
      f'{score.name:50}{score.value:.3f}'
      for name, kind, score, _ in rows
      if name == group and score.name.removeprefix(f'{kind}: ') not in names
    ]
  known = protein_scores.confidence(found)
  lines += [
    '',
    f'pLDDT and lDDT: Pearson correlation {known.by_chain:.2f} over chains,'
    f' {known.by_residue:.2f} over residues; calibration error'
    f' {known.error:.3f}',
  ]
  return '\n'.join(lines)


def _calibration(known: Confidence) -> list[tuple[str, ...]]:
  rows = [('pLDDT at least', 'residues', 'mean pLDDT', 'mean lDDT')]
  for least, count, plddt, lddt in known.bins:
    rows.append((f'{least:.1f}', str(count), f'{plddt:.3f}', f'{lddt:.3f}'))
  return rows


def write(
  directory: pathlib.Path,
  origin: Origin,
  found: Sequence[ChainScores],
  command: str,
) -> pathlib.Path:
  """Writes the page, and the scores of every chain as JSON.

  Args:
    directory: where the files are written.
    origin: the model that folded the chains.
    found: scores of the chains.
    command: the command line that computes the scores again.

  Returns:
    The file of the page.
  """
  rows = protein_scores.summarised(found, command)
  known = protein_scores.confidence(found)
  directory.mkdir(parents=True, exist_ok=True)
  or_none = lambda value: None if np.isnan(value) else value
  content = {
    'model': origin._asdict(),
    'command': command,
    'plddt_lddt_pearson': or_none(known.by_chain),
    'plddt_lddt_pearson_of_residues': or_none(known.by_residue),
    'plddt_calibration_error': or_none(known.error),
    'plddt_calibration': known.bins,
    'scores': [
      {'group': group, **score.as_json(), 'quartiles': quartiles}
      for group, _, score, quartiles in rows
    ],
    'chains': protein_scores.as_json(found),
  }
  atomic_files.write_file(directory / SCORES, json.dumps(content, indent=1))
  chains = [('chain', 'residues', 'nearest', 'alignment', 'identity', *_SHOWN)]
  for one in found:
    values = one.scores[protein_scores.MODEL]
    chains.append((
      one.name,
      str(one.length),
      one.nearest,
      str(one.alignment),
      f'{one.identity:.2f}',
      *(f'{values[name]:.3f}' for name in _SHOWN),
    ))  # fmt: skip
  text = templates.render(
    'protein_scores_page.html',
    title='Scores of a folding model',
    origin=origin,
    known=known,
    bins=_calibration(known),
    groups={
      title: table(rows, group)
      for group, title in _GROUPS.items()
      if any(row[0] == group for row in rows)
    },
    chains=chains,
    command=command,
  )
  atomic_files.write_file(directory / PAGE, text)
  return directory / PAGE
