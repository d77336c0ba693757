"""Decodes picture files into arrays, or refuses them.

The result is RGB with 8 bits per channel. A picture is rotated as its EXIF data
says, and transparent parts become white. Only the first frame of an animation
is read.
"""

import io
import os
import warnings

import numpy as np

# A picture whose header states more pixels is refused before it is decoded.
MAX_PIXELS = 50_000_000
_MAX_BYTES = 100_000_000
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
# Pillow's modes for pictures with one channel of more than 8 bits.
_DEEP = ('I', 'I;16', 'I;16B', 'I;16L', 'F')


def decode(data: bytes, name: str) -> np.ndarray:
  """The pixels of a picture file.

  Args:
    data: bytes of the file.
    name: name of the file for error messages.

  Returns:
    uint8 [Y, X, 3].

  Raises:
    ValueError: if the file is no picture, damaged, cut short or too large.
  """
  # Imported here, since commands that read no picture also import this file.
  from PIL import Image

  if not data:
    raise ValueError(f'The picture {name} must not be empty.')
  if len(data) > _MAX_BYTES:
    raise ValueError(
      f'The picture {name} must have at most {_MAX_BYTES:,} bytes, got'
      f' {len(data):,}: make it smaller.'
    )
  try:
    with warnings.catch_warnings():
      # Pillow only warns about large pictures. The size is checked below.
      warnings.simplefilter('ignore')
      with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_size(image.size, name)
        return _pixels(image)
  except ValueError as error:
    if str(error).startswith('The picture'):
      raise
    raise _damaged(name, error) from error
  except Image.DecompressionBombError as error:
    raise _wrong_size(name, 'many more') from error
  # Any error is caught, since Pillow raises many kinds of errors for damaged
  # files, even SyntaxError.
  except Exception as error:
    raise _damaged(name, error) from error


def read(path: str | os.PathLike, size: int) -> np.ndarray:
  """A picture file as uint8 [size, size, 3].

  Args:
    path: the file.
    size: pixels of height and width.

  Raises:
    ValueError: if the file cannot be read, or if `decode` refuses it.
  """
  return fit(decode(read_bytes(path, str(path)), str(path)), size)


def read_bytes(path: str | os.PathLike, name: str) -> bytes:
  """The bytes of a picture file, as `decode` takes them.

  Args:
    path: the file.
    name: name of the file for error messages.

  Raises:
    ValueError: if the file cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      # One byte more than allowed shows that a file is too large.
      return file.read(_MAX_BYTES + 1)
  except OSError as error:
    raise ValueError(
      f'The picture {name} must be readable, got {error.strerror}.'
    ) from error


def _check_size(size: tuple[int, int], name: str) -> None:
  width, height = size
  if width * height > MAX_PIXELS or min(size) < 1:
    raise _wrong_size(name, f'{width} x {height}')


def _wrong_size(name: str, got: str) -> ValueError:
  return ValueError(
    f'The picture {name} must have 1 to {MAX_PIXELS:,} pixels, got {got}: make'
    ' it smaller.'
  )


def _damaged(name: str, error: Exception) -> ValueError:
  from PIL import UnidentifiedImageError

  if isinstance(error, UnidentifiedImageError):
    got = 'bytes that no format begins with'
  else:
    got = f'{type(error).__name__} ({str(error)[:80]})'
  return ValueError(
    f'The picture {name} must be a sound file of {", ".join(_FORMATS)}, got'
    f' {got}: replace it.'
  )


def _pixels(image) -> np.ndarray:
  from PIL import Image, ImageOps

  image.seek(0)
  image.load()
  image = ImageOps.exif_transpose(image)
  if image.mode in _DEEP:
    # Pillow would clip values above 255, so they are scaled here.
    deep = np.asarray(image).astype(np.float64)
    if not np.isfinite(deep).all():
      raise ValueError('a pixel is NaN or infinite')
    scale = 65535 if image.mode != 'F' else max(float(deep.max()), 1.0)
    if image.mode == 'I' and deep.max() <= 255:
      scale = 255
    grey = np.clip(deep / scale, 0, 1)
    return np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, -1)
  has_alpha = 'transparency' in image.info or image.mode in ('LA', 'PA', 'RGBA')
  if has_alpha or image.mode in ('La', 'RGBa'):
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return np.asarray(image.convert('RGB'))


def fit(picture: np.ndarray, size: int) -> np.ndarray:
  """Fits a picture into a square: scales it without distortion, and centres it.

  The margins get the mean colour of the four corners.

  Args:
    picture: uint8 [Y, X] or [Y, X, 3].
    size: pixels of height and width.

  Returns:
    uint8 [size, size, 3].
  """
  if picture.ndim == 2:
    picture = np.repeat(picture[..., None], 3, axis=-1)
  height, width, _ = picture.shape
  if (height, width) == (size, size):
    return picture
  corners = picture[:: max(height - 1, 1), :: max(width - 1, 1)]
  ground = corners.reshape(-1, 3).mean(axis=0)
  square = np.tile(np.rint(ground).astype(np.uint8), (size, size, 1))
  # A picture that fits is not scaled if its longer side is more than half of
  # the square's side. So its edges stay sharp.
  if max(height, width) > size or 2 * max(height, width) <= size:
    from PIL import Image

    scale = size / max(height, width)
    shape = [max(1, round(side * scale)) for side in (width, height)]
    resized = Image.fromarray(picture).resize(shape, Image.Resampling.BOX)
    picture = np.asarray(resized)
    height, width, _ = picture.shape
  top, left = (size - height) // 2, (size - width) // 2
  square[top : top + height, left : left + width] = picture
  return square
