"""The pictures in the report of a run: drawn, described and recognised."""

import base64
import os
from typing import Any

import numpy as np

from moe.report import picture_files
from moe.runs import gallery_file
from moe.runs.gallery_file import Gallery

# More steps would not fit on a page.
_MAX_STEPS = 8
_LEAST_PIXELS = 64


def galleries(workdir: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Name of the pictures -> what the page shows of them, ready for HTML."""
  found = gallery_file.read(workdir)
  return {name: _shown(one) for name, one in found.items()}


def _shown(gallery: Gallery) -> dict[str, Any]:
  steps = list(gallery.drawn)
  chosen = np.linspace(0, len(steps) - 1, min(len(steps), _MAX_STEPS))
  drawn = [
    (steps[i], _pngs(gallery.drawn[steps[i]])) for i in chosen.astype(int)
  ]
  made = _pngs(gallery.made)
  # Codes may have been written without the original pictures.
  originals = _pngs(gallery.originals) or [''] * len(made)
  described = zip(
    originals, made, gallery.captions, gallery.written, strict=True
  )
  return {
    'sentences': gallery.sentences,
    'drawn': drawn,
    'described': list(described),
    'labels': gallery.labels,
    'confusion': _confusion(gallery.confusion),
    'right': _share_right(gallery.confusion),
  }


def _confusion(counts: np.ndarray | None) -> list[list[tuple[int, float]]]:
  """(count, share of its row) of each cell."""
  if counts is None:
    return []
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  return [
    [(int(n), float(share)) for n, share in zip(*row, strict=True)]
    for row in zip(counts, shares, strict=True)
  ]


def _share_right(counts: np.ndarray | None) -> str:
  if counts is None:
    return ''
  return f'{np.trace(counts):,} of {counts.sum():,} are right'


def _pngs(pictures: np.ndarray | None) -> list[str]:
  """Each picture as PNG in base64."""
  if pictures is None:
    return []
  sheets = (picture_files.sheet([p], least=_LEAST_PIXELS) for p in pictures)
  return [base64.b64encode(picture_files.png(s)).decode() for s in sheets]
