"""Reads pictures with captions from data files or from a user's folder.

A source has `splits` and `records(split)`, which gives dictionaries with
'picture' (uint8 [size, size, 3]), 'caption' and 'facts' (further values that
JSON can hold).
"""

import dataclasses
import glob
import itertools
import json
import logging
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from moe.data.pictures import JUDGE
from tasks import splits, text_files
from tasks.pictures import decoding, drawing, sentences

_logger = logging.getLogger(__name__)

CAPTIONS = 'captions.jsonl'
_FILE_OF = {'train': 'train', 'validation': 'valid'}
# Split -> (split of TensorFlow Datasets, number of pictures of Fashion-MNIST).
_CLOTHES_OF = {'train': ('train', 20_000), 'validation': ('test', 1500)}
# Each split draws each character this many times, each time with new jitter.
_HANZI_REPEATS = {'train': 40, 'validation': 2, JUDGE: 30}
# This character is drawn too, although it is rare, since textbooks show all
# basic strokes in it.
_FIRST_HANZI = '永'
# Strokes lie in a square with sides of _EM. Its top is at y = _TOP.
_EM, _TOP = 1024, 900


@dataclasses.dataclass(frozen=True)
class FashionMnist:
  """Fashion-MNIST (Xiao et al. 2017): grey pictures of ten kinds of clothes.

  If the data directory does not have them, TensorFlow Datasets loads them.

  Attributes:
    size: pixels of height and width.
  """

  size: int = 32
  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """Pictures of a split, in the order of the file."""
    for number, (picture, label) in enumerate(_clothes(split)):
      sentence = sentences.CLOTHES[number % len(sentences.CLOTHES)]
      name = sentences.CLOTHES_NAMES[label]
      yield {
        'picture': decoding.fit(picture, self.size),
        'caption': sentence.format(name),
        'facts': {'label': int(label), 'name': name},
      }

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    part = _file_part(split)
    return [f'images/fashion_mnist_{part}.npz']


@dataclasses.dataclass(frozen=True)
class Emoji:
  """Emoji in the styles of three designers, with names from Unicode CLDR.

  Attributes:
    styles: the styles to read, keys of `sentences.EMOJI_STYLES`.
    size: pixels of height and width.
  """

  styles: Sequence[str] = tuple(sentences.EMOJI_STYLES)
  size: int = 64
  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """Pictures of a split, one style after the other."""
    part = _file_part(split)
    for style in self.styles:
      pictures = _arrays(f'emoji_{style}_{part}.npz')['images']
      entries = _lines(f'emoji_{style}_{part}.jsonl.gz')
      for picture, entry in zip(pictures, entries, strict=True):
        yield {
          'picture': decoding.fit(picture, self.size),
          'caption': sentences.of_emoji(style, entry['zh_hant']),
          'facts': {
            'style': style,
            'name': entry['zh_hant'],
            'tags': entry['tags_zh_hant'],
          },
        }

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    part = _file_part(split)
    return [f'images/emoji_{style}_{part}.*' for style in self.styles]


@dataclasses.dataclass(frozen=True)
class Hanzi:
  """Characters drawn from their strokes, each time a little differently.

  Place, size, slant and width of the strokes vary at random. All splits have
  all characters, but with different random values. The split `JUDGE` is for the
  network that reads drawn characters.

  Attributes:
    num_characters: number of characters: 永 and the most frequent ones.
    size: pixels of height and width.
  """

  num_characters: int = 200
  size: int = 32
  splits: ClassVar[tuple[str, ...]] = (*splits.NAMES, JUDGE)

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """Pictures of a split; each round has every character once."""
    part = self.splits.index(split)
    glyphs = sorted(
      _lines(_STROKES),
      key=lambda glyph: (glyph['char'] != _FIRST_HANZI, -glyph['freq']),
    )
    for repeat in range(_HANZI_REPEATS[split]):
      for number, glyph in enumerate(glyphs[: self.num_characters]):
        rng = np.random.default_rng([part, repeat, number])
        yield {
          'picture': draw_strokes(glyph['medians'], self.size, rng),
          'caption': sentences.HANZI.format(glyph['char']),
          'facts': {'name': glyph['char']},
        }

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    del split
    return [f'images/{_STROKES}']


_STROKES = 'hanzi_strokes.jsonl.xz'


def draw_strokes(
  medians: Sequence[Sequence[Sequence[float]]],
  size: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws a character in black on white, uint8 [size, size, 3].

  Args:
    medians: the points of each stroke, in a square of 1,024 units; y points
      upwards.
    size: pixels of height and width.
    rng: random generator for place, size, slant and width of the strokes.
  """
  scale, slant = rng.uniform(0.75, 0.95), rng.uniform(-0.2, 0.2)
  shift = rng.uniform(-0.04, 0.04, 2)
  width = rng.uniform(0.05, 0.09)
  picture = drawing.ground(size, (255, 255, 255))
  for median in medians:
    points = np.array(median, np.float64)
    points = np.stack([points[:, 0], _TOP - points[:, 1]], axis=1) / _EM - 0.5
    points[:, 0] -= slant * points[:, 1]
    drawing.paint(
      picture, drawing.stroke(scale * points + 0.5 + shift, width), (0, 0, 0)
    )
  return drawing.finished(picture)


@dataclasses.dataclass
class Folder:
  """A user's pictures: a folder with picture files and `captions.jsonl`.

  Each line of `captions.jsonl` is {"file": name, "caption": sentence}. The
  split of a picture depends on the name of its file. A picture that cannot be
  decoded is left out, and `quarantine` has the reason.

  Attributes:
    directory: the folder.
    size: pixels of height and width.
    quarantine: a dict with 'file' and 'error' for each picture that was left
      out of the split that was read last.
  """

  directory: str
  size: int = 32
  quarantine: list[dict[str, str]] = dataclasses.field(default_factory=list)
  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """Pictures of a split, in the order of the captions.

    Raises:
      ValueError: if `captions.jsonl` is missing or malformed.
    """
    _file_part(split)
    self.quarantine.clear()
    root = pathlib.Path(self.directory).expanduser()
    lines = text_files.json_lines(
      (root / CAPTIONS).absolute(),
      {'file': str, 'caption': str},
      split_fn=lambda record: splits.by_hash(record['file']),
    )
    for record in lines.records(split):
      try:
        picture = decoding.decode(_bytes(root, record['file']), record['file'])
      except ValueError as error:
        self.quarantine.append({'file': record['file'], 'error': str(error)})
        _logger.info(f'warning: {error}')
        continue
      yield {
        'picture': decoding.fit(picture, self.size),
        'caption': record['caption'],
        'facts': {'file': record['file']},
      }

  def files_of(self, split: str) -> list[str]:
    """All files of the folder, for `tasks.origin`."""
    del split
    directory = str(pathlib.Path(self.directory).expanduser().absolute())
    return [os.path.join(glob.escape(directory), '**')]


def _bytes(root: pathlib.Path, name: str) -> bytes:
  """Reads a file of a folder.

  Raises:
    ValueError: if the file cannot be read, or lies outside of the folder.
  """
  path = (root / name).resolve()
  if not path.is_relative_to(root.resolve()):
    raise ValueError(
      f'The picture {name} must lie in the folder {root}, got a file outside:'
      ' move it there.'
    )
  return decoding.read_bytes(path, name)


def _file_part(split: str) -> str:
  """The name that data files use for a split."""
  if split not in _FILE_OF:
    raise ValueError(
      f'A split must be one of {", ".join(_FILE_OF)}, got {split!r}.'
    )
  return _FILE_OF[split]


def _clothes(split: str) -> Iterator[tuple[np.ndarray, int]]:
  """(uint8 [28, 28], label) of each picture of Fashion-MNIST."""
  name = f'fashion_mnist_{_file_part(split)}.npz'
  if _located(name).is_file():
    arrays = _arrays(name)
    yield from zip(arrays['images'], arrays['labels'], strict=True)
    return
  part, count = _CLOTHES_OF[split]
  try:
    # Here, since it is slow to import, and belongs to the [data] extra.
    import tensorflow_datasets as tfds

    builder = tfds.builder('fashion_mnist')
    builder.download_and_prepare()
  # A download fails with errors of many libraries.
  except Exception as error:
    raise ValueError(
      f'The data file {_located(name)} must be there, or TensorFlow Datasets'
      f' must load fashion_mnist, got {type(error).__name__}: {error}. Put the'
      " file there, or install '.[data]' and connect to the network."
    ) from error
  examples = tfds.as_numpy(builder.as_dataset(split=part))
  for example in itertools.islice(examples, count):
    yield example['image'][..., 0], example['label']


def _located(name: str) -> pathlib.Path:
  return text_files.data_directory() / 'images' / name


def _path(name: str) -> pathlib.Path:
  path = _located(name)
  if not path.is_file():
    raise ValueError(
      f'The data file {path} must be there: put it there, or set $WUDAO_DATA to'
      ' the directory that has it.'
    )
  return path


def _arrays(name: str) -> dict[str, np.ndarray]:
  path = _path(name)
  try:
    with np.load(path) as file:
      return dict(file)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'The data file {path} must be sound, got {error}: restore it.'
    ) from error


def _lines(name: str) -> Iterator[Any]:
  """Reads the values in a file of JSON lines."""
  source = text_files.LineSource({'all': _path(name)}, json.loads)
  return source.records('all')
