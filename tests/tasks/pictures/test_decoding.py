import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.pictures import decoding


def saved(image, kind='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def plain(mode, colour, size=(4, 2)):
  return Image.new(mode, size, colour)


@pytest.mark.parametrize(
  'data, colour',
  [
    (saved(plain('RGB', (10, 20, 30))), (10, 20, 30)),
    (saved(plain('L', 77)), (77, 77, 77)),
    (saved(plain('1', 1)), (255, 255, 255)),
    # Cyan ink absorbs red light, so green and blue remain.
    (saved(plain('CMYK', (255, 0, 0, 0)), 'TIFF'), (0, 255, 255)),
    # 0x8000 is the middle between 0 and 0xffff.
    (saved(plain('I;16', 0x8000)), (128, 128, 128)),
    (saved(plain('RGBA', (0, 0, 0, 0))), (255, 255, 255)),
    (saved(plain('LA', (0, 128))), (127, 127, 127)),
    (
      saved(
        plain('RGB', (255, 0, 0)),
        'GIF',
        save_all=True,
        append_images=[plain('RGB', (0, 0, 255))],
      ),
      (255, 0, 0),
    ),
  ],
  ids=['rgb', 'grey', 'bit', 'cmyk', '16 bit', 'clear', 'half', 'animated'],
)
def test_every_mode_becomes_rgb_of_8_bits(data, colour):
  picture = decoding.decode(data, 'a.png')
  assert picture.shape == (2, 4, 3) and picture.dtype == np.uint8
  np.testing.assert_allclose(picture[0, 0], colour, atol=1)


def test_a_picture_is_turned_as_its_exif_data_says():
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation 6: rotate by 90 degrees clockwise.
  image = plain('RGB', (0, 0, 0))
  image.putpixel((0, 0), (255, 255, 255))
  picture = decoding.decode(saved(image, exif=exif), 'a.png')
  assert picture.shape == (4, 2, 3) and picture[0, 1, 0] == 255


def bomb():
  """A tiny PNG file that claims to have 100,000 x 100,000 pixels."""

  def chunk(kind, data):
    crc = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + crc

  header = struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(b'\0' * 100))
    + chunk(b'IEND', b'')
  )


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.parametrize(
  'data, rule',
  [
    (b'', 'not be empty'),
    (b'not a picture', 'be a sound file .* got bytes that no format'),
    (saved(Image.fromarray(NOISE))[:200], 'be a sound file'),
    (saved(Image.fromarray(NOISE), 'JPEG')[:300], 'be a sound file'),
    (bomb(), 'have 1 to 50,000,000 pixels'),
    (
      saved(Image.fromarray(np.array([[1, np.nan]], np.float32)), 'TIFF'),
      'be a sound file',
    ),
  ],
  ids=['empty', 'text', 'cut png', 'cut jpeg', 'bomb', 'nan'],
)
def test_what_cannot_be_decoded_is_refused_with_its_name(data, rule):
  with pytest.raises(ValueError, match=f'The picture mine/a.png must {rule}'):
    decoding.decode(data, 'mine/a.png')


def test_a_picture_of_another_size_is_fitted_into_a_square():
  white = np.full((40, 20, 3), 255, np.uint8)
  white[10:30, 4:14] = 0
  fitted = decoding.fit(white, 20)
  assert fitted.shape == (20, 20, 3)
  # The picture fills half of the square of 400 pixels. A quarter of the picture
  # is black: 50 pixels.
  assert (fitted == 0).all(axis=-1).sum() == 50
  grey = decoding.fit(np.zeros((28, 28), np.uint8), 32)
  assert grey.shape == (32, 32, 3) and not grey.any()
