"""A page about a model that draws and describes pictures."""

import base64
import pathlib
from collections.abc import Mapping

import numpy as np

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
  scores = [score for one in found.values() for score in one.scores]
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


def _png(pixels: np.ndarray) -> str:
  """Encodes a picture as PNG in base64."""
  sheet = picture_files.sheet([pixels], least=_LEAST_PIXELS)
  return base64.b64encode(picture_files.png(sheet)).decode()
