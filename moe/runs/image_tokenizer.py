"""Trains an image tokenizer, and freezes it afterwards."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe import atomic_files, json_text
from moe.checkpoint import listing, restore
from moe.data.cache_dir import default_cache_dir
from moe.data.pictures import PictureReader, held_out, picture_batches
from moe.data.store import Store, decode_record, encode_record
from moe.modalities.image import Autoencoder
from moe.models.decoder import Decoder
from moe.models.functional import PictureFunctional
from moe.runs import attempt, preflight
from moe.runs.run import IMAGE_TOKENIZER
from moe.runs.tokenizer_run import TokenizerRun
from moe.train import program as program_lib
from moe.train.evaluation import HeldOut
from moe.train.program import Program
from moe.types import Array, Batch, PyTree

_logger = logging.getLogger(__name__)

# Number of pictures that are encoded or decoded at a time.
_CHUNK = 128
# The key of the configuration in the file of a frozen tokenizer. All other keys
# are paths of parameters.
_CONFIG = 'config'


# (names of sources, height and width in pixels, cache directory) -> name ->
# split -> directory of a store.
PreparePictures = Callable[
  [Sequence[str], int, str | os.PathLike], dict[str, dict[str, str]]
]


def describe(run: TokenizerRun) -> str:
  """Text about the parameters and codes of a tokenizer."""
  side = run.data.pixels
  height, width = run.model.grid(side, side)
  return program_lib.parameter_table(run.program()) + (
    f'{run.model.num_codes:,} codes, {height} x {width} for a picture of'
    f' {side} x {side} pixels\n'
  )


def train(
  run: TokenizerRun,
  workdir: str,
  config_files: dict[str, str],
  prepare_pictures: PreparePictures,
  compiled: str | None = None,
  begin: float | None = None,
) -> int:
  """Trains a tokenizer, or resumes its run, and freezes it at the end.

  Args:
    run: the run.
    workdir: directory of all files of the run.
    config_files: the configuration files to write, text by file name.
    prepare_pictures: makes the stores of pictures that are missing.
    compiled: see `attempt.Attempt`.
    begin: see `attempt.Attempt`.

  Returns:
    The exit code: 0 at the end, 75 after a signal to stop.

  Raises:
    ValueError: if there are several processes, if pictures cannot be used, or
      if checkpoints do not fit.
  """
  # The first process alone freezes the tokenizer, but all processes of a run
  # must read a checkpoint together.
  if jax.process_count() > 1:
    raise ValueError(
      'An image tokenizer must be trained by one process, got'
      f' {jax.process_count()}: start it on one host.'
    )
  program = run.program()

  def write_frozen() -> None:
    frozen = freeze(run, workdir)
    _logger.info(
      f'{os.path.join(workdir, IMAGE_TOKENIZER)}: {frozen.num_codes:,} codes,'
      f' {frozen.grid[0]} x {frozen.grid[1]} for a picture,'
      f' SHA-256 {frozen.sha256[:12]}'
    )

  def opened() -> attempt.Opened:
    return attempt.Opened(
      *open_pictures(run, program, prepare_pictures),
      preflight.run_identity(run),
      program.init,
      write_frozen,
    )

  one = attempt.Attempt(
    run.settings,
    program,
    workdir,
    config_files,
    compiled=compiled,
    begin=begin,
  )
  return attempt.train(one, opened)


def open_pictures(
  run: TokenizerRun, program: Program, prepare_pictures: PreparePictures
) -> tuple[PictureReader, dict[str, HeldOut]]:
  """Returns (reader of training batches, held-out pictures by name)."""
  data = run.data
  shape = (data.pixels, data.pixels)
  dirs = prepare_pictures(
    data.names, data.pixels, data.cache_dir or default_cache_dir()
  )
  rows = program.own_rows(data.batch_size)
  stores = [Store(dirs[name]['train']).hold() for name in data.names]
  reader = PictureReader(
    stores,
    data.rates or [float(store.lengths.size) for store in stores],
    data.batch_size,
    run.settings.seed,
    shape,
    rows,
  )

  def evaluation(store: Store) -> HeldOut:
    def batches() -> Iterator[Batch]:
      return picture_batches(store, data.batch_size, shape, rows)

    return HeldOut(batches, program.objective.score)

  evaluations = {}
  for name in data.names:
    for label, directory in held_out(name, dirs[name]).items():
      store = Store(directory).hold()
      evaluations[label.replace(' ', '_')] = evaluation(store)
  return reader, evaluations


@dataclasses.dataclass(frozen=True)
class ImageTokenizer:
  """A frozen tokenizer; the hash of its file identifies it.

  Attributes:
    functional: pure functions of the autoencoder.
    params: parameters of the autoencoder.
    pixels: height and width of a picture.
    sha256: hash of the tokenizer's file.
  """

  functional: PictureFunctional
  params: PyTree
  pixels: int
  sha256: str

  @property
  def num_codes(self) -> int:
    """Number of different codes."""
    return self.functional.module.num_codes

  @property
  def levels(self) -> tuple[int, ...]:
    """Number of levels of each channel of a code."""
    return tuple(self.functional.module.levels)

  @property
  def grid(self) -> tuple[int, int]:
    """(rows, columns) of the codes of a picture."""
    return self.functional.module.grid(self.pixels, self.pixels)

  @property
  def facts(self) -> dict[str, str]:
    """Facts about the tokenizer for a page, as texts by name."""
    height, width = self.grid
    count = sum(array.size for array in jax.tree.leaves(self.params))
    return {
      'SHA-256': self.sha256,
      'picture': f'{self.pixels} x {self.pixels} pixels',
      'codes of a picture': f'{height} x {width}',
      'codes': f'{self.num_codes:,}, levels {self.levels}',
      'parameters': f'{count:,}',
    }

  def encode(self, pictures: np.ndarray) -> np.ndarray:
    """Encodes uint8 pictures [N, Y, X, 3] as codes, int32 [N, codes].

    The codes of a picture are listed row by row, from the top.
    """
    codes = _in_chunks(self._encode, pictures)
    return codes.reshape(len(pictures), -1)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """Decodes codes [N, codes] into pictures, uint8 [N, Y, X, 3].

    Raises:
      ValueError: if a code is out of range, or if a picture has a wrong number
        of codes.
    """
    codes = np.asarray(codes, np.int32)
    height, width = self.grid
    if codes.shape[1:] != (height * width,) or (
      codes.size and not 0 <= codes.min() <= codes.max() < self.num_codes
    ):
      raise ValueError(
        f'A picture must have {height * width} codes from 0 to'
        f' {self.num_codes - 1}, got codes of the shape {codes.shape}: use the'
        ' tokenizer that made them.'
      )
    return _in_chunks(self._decode, codes.reshape(-1, height, width))

  @functools.cached_property
  def _encode(self) -> Callable[[Array], Array]:
    return jax.jit(
      lambda pixels: self.functional.encode(
        self.params, pixels.astype(jnp.float32) / 255
      )
    )

  @functools.cached_property
  def _decode(self) -> Callable[[Array], Array]:
    def decode(codes: Array) -> Array:
      pixels = self.functional.decode(self.params, codes)
      return jnp.rint(255 * pixels).astype(jnp.uint8)

    return jax.jit(decode)


def check_model(tokenizer: ImageTokenizer, model: Decoder) -> None:
  """Raises ValueError unless a model has the sizes of a tokenizer.

  Args:
    tokenizer: the tokenizer that made the codes.
    model: a model that reads or draws them.
  """
  height, width = tokenizer.grid
  wanted = f'of the tokenizer, with {height} x {width} codes for a picture: set'
  wanted += ' what `python -m launch.images encode` has printed.'
  levels = tuple(model.code_levels)
  if levels and levels != tokenizer.levels:
    raise ValueError(
      f'CODE_LEVELS={levels} must be the levels {tokenizer.levels} {wanted}'
    )
  tables = dict(model.extra_tables)
  for name, least in (('row', height + 1), ('column', width + 1)):
    if tables.get(name, least) < least:
      raise ValueError(
        f'EXTRA_TABLES: {name}={tables[name]} must be at least {least} because'
        f' {wanted}'
      )
  longest = model.longest_block
  if longest < height * width:
    raise ValueError(
      f'LONGEST_BLOCK={longest} must be at least {height * width} because'
      f' {wanted}'
    )


def _in_chunks(fn: Callable[[Array], Array], array: np.ndarray) -> np.ndarray:
  """Applies a function to chunks of equal size, so that it is compiled once."""
  made = []
  for first in range(0, len(array), _CHUNK):
    chunk = array[first : first + _CHUNK]
    padded = np.zeros((_CHUNK, *array.shape[1:]), array.dtype)
    padded[: len(chunk)] = chunk
    made.append(np.asarray(fn(padded))[: len(chunk)])
  if not made:
    shape = jax.eval_shape(
      fn, jax.ShapeDtypeStruct((1, *array.shape[1:]), array.dtype)
    )
    return np.zeros((0, *shape.shape[1:]), shape.dtype)
  return np.concatenate(made)


def freeze(run: TokenizerRun, workdir: str) -> ImageTokenizer:
  """Writes the best parameters of a run into one file and loads this file."""
  steps_dir = listing.steps_dir(workdir)
  loaded, _ = restore.load_params(
    steps_dir, listing.shared_best_step(steps_dir)
  )
  arrays = {
    name: np.asarray(array, np.float32)
    for name, array in sorted(restore.leaves(loaded['params']).items())
  }
  model = run.model
  config = {
    'levels': list(model.levels),
    'widths': list(model.widths),
    'num_blocks': list(model.num_blocks),
    'pixels': run.data.pixels,
  }
  encoded = json.dumps(config, sort_keys=True).encode()
  record = {_CONFIG: np.frombuffer(encoded, np.uint8), **arrays}
  path = os.path.join(workdir, IMAGE_TOKENIZER)
  atomic_files.write_file(path, encode_record(record))
  return load(path)


def path_of(place: str | os.PathLike) -> pathlib.Path:
  """The file of a frozen tokenizer, given this file or its directory."""
  path = pathlib.Path(place)
  return path / IMAGE_TOKENIZER if path.is_dir() else path


def load(path: str | os.PathLike) -> ImageTokenizer:
  """Reads a frozen tokenizer.

  Args:
    path: file of the tokenizer, or work directory of its run.

  Raises:
    ValueError: if the file is missing or damaged.
  """
  path = path_of(path)
  if not path.is_file():
    raise ValueError(
      f'A frozen image tokenizer must be at {path}, got nothing there: train'
      ' one with `python -m launch.train'
      ' --gin_file=runs/image_tokenizer_fashion.gin`, or name the directory of'
      ' such a run.'
    )
  data = path.read_bytes()
  try:
    arrays = dict(decode_record(data))
    config = json_text.parse(arrays.pop(_CONFIG).tobytes())
    pixels = config.pop('pixels')
    model = Autoencoder(**{name: tuple(v) for name, v in config.items()})
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'The image tokenizer {path} must be sound, got {error}: copy it again.'
    ) from error
  params = {}
  for name, array in arrays.items():
    *parents, last = name.split('/')
    place = params
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = jnp.asarray(array)
  sha256 = hashlib.sha256(data).hexdigest()
  return ImageTokenizer(PictureFunctional(model), params, pixels, sha256)
