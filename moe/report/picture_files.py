"""Writes pictures as PNG files, which may contain texts about them."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from moe import atomic_files
from moe.runs.picture_model import Drawing, Drawn, PictureModel

_GAP = 2
_GROUND = 128


def png(picture: np.ndarray, texts: Mapping[str, str] | None = None) -> bytes:
  """Makes the content of a PNG file from a picture, uint8 [Y, X, 3].

  Args:
    picture: the pixels.
    texts: keyword -> text; each becomes a text chunk of the file, in UTF-8.
  """
  # Only PNG files need Pillow.
  from PIL import Image, PngImagePlugin

  info = PngImagePlugin.PngInfo()
  for name, text in (texts or {}).items():
    info.add_itxt(name, text)
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, 'PNG', pnginfo=info)
  return buffer.getvalue()


def sheet(
  pictures: Sequence[np.ndarray], columns: int = 0, least: int = 128
) -> np.ndarray:
  """Arranges pictures of the same size in rows and columns.

  Args:
    pictures: at least one picture, uint8 [Y, X, 3]. A single picture gets no
      margin.
    columns: number of pictures in a row; 0 makes the sheet about square.
    least: least height of a picture on the sheet. Smaller pictures are enlarged
      by a whole factor.

  Returns:
    uint8 [Y, X, 3].
  """
  height, width = pictures[0].shape[:2]
  scale = max(1, -(-least // height))
  if len(pictures) == 1:
    return pictures[0].repeat(scale, axis=0).repeat(scale, axis=1)
  columns = columns or int(np.ceil(len(pictures) ** 0.5))
  rows = -(-len(pictures) // columns)
  shape = rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3
  made = np.full(shape, _GROUND, np.uint8)
  for place, picture in enumerate(pictures):
    row, column = divmod(place, columns)
    top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
    made[top : top + height, left : left + width] = picture
  return made.repeat(scale, axis=0).repeat(scale, axis=1)


def write_drawn(
  path: pathlib.Path,
  model: PictureModel,
  prompt: str,
  options: Drawing,
  drawn: Sequence[Drawn],
) -> list[float]:
  """Writes drawn pictures as a PNG; its text says how to draw them again.

  Args:
    path: file to write.
    model: the model that drew the pictures.
    prompt: the sentence that was drawn.
    options: how the pictures were drawn.
    drawn: the pictures.

  Returns:
    The caption loss of each picture.
  """
  losses = [round(one.caption_loss, 4) for one in drawn]
  facts = {
    'prompt': prompt,
    'seed': options.seed,
    'guidance': options.guidance,
    'temperature': options.sampling.temperature,
    'top_k': options.sampling.top_k,
    'rerank': options.rerank,
    'caption_losses': losses,
    'step': model.trained.step,
    'model_sha256': model.sha256,
    'tokenizer_sha256': model.tokenizer.sha256,
  }
  text = json.dumps(facts, ensure_ascii=False)
  image = png(sheet([one.pixels for one in drawn]), {'wudao': text})
  atomic_files.write_file(path, image)
  return losses
