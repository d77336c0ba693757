"""Writes a page about an image tokenizer: scores and reconstructed pictures."""

import base64
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from moe import atomic_files
from moe.evaluate.reconstruction import Reconstruction
from moe.evaluate.score import Score
from moe.report import facts_page, picture_files

PAGE, SCORES = 'tokenizer_report.html', 'tokenizer_report.json'
# Largest number of columns, and of rows of originals, on a sheet. Below each
# row of originals is a row of their reconstructions.
_COLUMNS, _ROWS = 12, 4
_GAP = 2
# A sheet is enlarged so that pictures are at least this many pixels high.
_LEAST_PIXELS = 64


def sheet(found: Reconstruction) -> np.ndarray:
  """Makes a sheet with a row of reconstructions below each row of originals.

  Args:
    found: at least one picture. If there are too many for a sheet, it shows
      evenly spaced ones.

  Returns:
    uint8 [Y, X, 3].
  """
  count = min(len(found.pictures), _COLUMNS * _ROWS)
  chosen = np.linspace(0, len(found.pictures) - 1, count).astype(int)
  height, width = found.pictures.shape[1:3]
  num_rows = -(-count // _COLUMNS)
  made = np.full(
    (
      num_rows * (2 * height + 3 * _GAP),
      min(count, _COLUMNS) * (width + _GAP),
      3,
    ),
    128,
    np.uint8,
  )
  for place, index in enumerate(chosen):
    row, column = divmod(place, _COLUMNS)
    top, left = row * (2 * height + 3 * _GAP), column * (width + _GAP)
    made[top : top + height, left : left + width] = found.pictures[index]
    top += height + _GAP
    made[top : top + height, left : left + width] = found.made[index]
  scale = -(-_LEAST_PIXELS // height)
  return made.repeat(scale, axis=0).repeat(scale, axis=1)


def write(
  directory: pathlib.Path,
  title: str,
  facts: Mapping[str, str],
  found: Mapping[str, Reconstruction],
  scores: Sequence[Score],
) -> pathlib.Path:
  """Writes the page, the scores as JSON, and a PNG sheet for each source.

  Args:
    directory: where the files are written.
    title: title of the page.
    facts: name -> fact about the tokenizer, for the head of the page.
    found: name of a picture source -> pictures and their reconstructions.
    scores: scores of all reconstructions.

  Returns:
    The file of the page.
  """
  directory.mkdir(parents=True, exist_ok=True)
  sheets = {}
  for name, one in found.items():
    data = picture_files.png(sheet(one))
    file_name = name.strip('./').replace('/', '_')
    atomic_files.write_file(
      directory / f'reconstructions_{file_name}.png', data
    )
    sheets[name] = base64.b64encode(data).decode()
  return facts_page.write(
    directory,
    (PAGE, SCORES),
    'tokenizer_page.html',
    title,
    facts,
    scores,
    sheets=sheets,
  )
