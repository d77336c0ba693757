"""The file with the pictures that the report of a run shows."""

import dataclasses
import json
import os

import numpy as np

from moe import atomic_files

FILE = 'gallery.npz'


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Pictures of one source in the report of a run.

  Attributes:
    sentences: the sentences that are drawn.
    drawn: step -> pictures of these sentences, uint8 [N, Y, X, 3].
    originals: held-out pictures, or None.
    made: the same pictures, decoded from their codes.
    captions: their sentences.
    written: the sentences of the model; () before the end of the run.
    labels: the names that the model tells apart; () if there are none.
    confusion: int [labels, labels], number of pictures by their true name (row)
      and by the answer of the model (column).
  """

  sentences: list[str]
  drawn: dict[int, np.ndarray]
  originals: np.ndarray | None = None
  made: np.ndarray | None = None
  captions: list[str] = ()
  written: list[str] = ()
  labels: list[str] = ()
  confusion: np.ndarray | None = None


def read(workdir: str | os.PathLike) -> dict[str, Gallery]:
  """Name of the source -> gallery; {} if the run has no such file."""
  path = os.path.join(workdir, FILE)
  if not os.path.exists(path):
    return {}
  with np.load(path) as arrays:
    found = json.loads(arrays['texts'].item())
    for name, texts in found.items():
      mine = {
        key.removeprefix(f'{name}/'): arrays[key]
        for key in arrays
        if key.startswith(f'{name}/')
      }
      steps = [key for key in mine if key.isdigit()]
      drawn = {int(step): mine.pop(step) for step in sorted(steps, key=int)}
      found[name] = Gallery(drawn=drawn, **mine, **texts)
  return found


def write(workdir: str | os.PathLike, galleries: dict[str, Gallery]) -> None:
  """Writes the file that `read` reads."""
  texts, arrays = {}, {}
  for name, gallery in galleries.items():
    texts[name] = {}
    for field in dataclasses.fields(gallery):
      value = getattr(gallery, field.name)
      if isinstance(value, dict):
        arrays |= {f'{name}/{step}': made for step, made in value.items()}
      elif isinstance(value, np.ndarray):
        arrays[f'{name}/{field.name}'] = value
      elif value is not None:
        texts[name][field.name] = list(value)
  with atomic_files.replacing(os.path.join(workdir, FILE)) as file:
    np.savez_compressed(file, texts=json.dumps(texts), **arrays)
