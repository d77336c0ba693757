"""A page about a model that draws and describes pictures."""

import base64
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from moe import json_text
from moe.evaluate import comparison, score
from moe.evaluate.score import Score
from moe.report import facts_page, picture_files
from moe.runs.picture_scores import Found

PAGE, SCORES = 'pictures_report.html', 'pictures_report.json'
_LEAST_PIXELS = 96


def write(
  directory: pathlib.Path,
  title: str,
  facts: Mapping[str, str],
  found: Mapping[str, Found],
) -> pathlib.Path:
  """Writes the page, and the scores as JSON.

  Args:
    directory: where the files are written.
    title: title of the page.
    facts: facts about the model, for the head of the page.
    found: name of a picture source -> its scores and examples.

  Returns:
    The file of the page.
  """
  directory.mkdir(parents=True, exist_ok=True)
  scores = [s for one in found.values() for s in one.scores]
  return facts_page.write(
    directory,
    (PAGE, SCORES),
    'pictures_page.html',
    title,
    facts,
    scores,
    found={
      name: {
        'drawn': [(_png(pixels), text) for text, pixels in one.drawn],
        'described': [(_png(p), *texts) for p, *texts in one.described],
      }
      for name, one in found.items()
    },
  )


def join(directories: Sequence[str]) -> list[Score]:
  """The scores of several runs as means; reads the JSON files of `write`.

  Args:
    directories: the folders of the files, one for each seed.

  Raises:
    ValueError: if a file is missing, if there are fewer than two, or if two
      have the scores of the same model.
  """
  runs, directory_of = [], {}
  for directory in directories:
    path = pathlib.Path(directory, SCORES)
    if not path.is_file():
      raise ValueError(
        f'{path} must be there, got nothing: make it with `python -m'
        ' launch.images score`.'
      )
    read = json_text.parse(path.read_text(encoding='utf-8'))
    other = directory_of.setdefault(read['facts']['model'], directory)
    if len(directory_of) <= len(runs):
      raise ValueError(
        f'The runs to join must be different models, but {other} and'
        f' {directory} have scores of the same one: leave one of them out.'
      )
    runs.append([score.from_json(entry) for entry in read['scores']])
  return comparison.of_runs(runs)


def _png(pixels: np.ndarray) -> str:
  """Encodes a picture as PNG in base64."""
  sheet = picture_files.sheet([pixels], least=_LEAST_PIXELS)
  return base64.b64encode(picture_files.png(sheet)).decode()
