"""Files of pictures."""

import io

import numpy as np
from PIL import Image

from moe.report import picture_files


def test_a_file_says_what_it_is():
  pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  data = picture_files.png(pixels, {'wudao': '紅色圓形'})
  with Image.open(io.BytesIO(data)) as image:
    assert image.text == {'wudao': '紅色圓形'}
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_sheet_has_all_pictures_and_one_picture_has_no_margin():
  black, white = (np.full((4, 4, 3), v, np.uint8) for v in (0, 255))
  sheet = picture_files.sheet([black, white, white], columns=2, least=8)
  # Two rows of 4 pixels and three margins of 2 are 14 pixels high. Then the
  # sheet is enlarged by the factor 2.
  assert sheet.shape == (28, 28, 3)
  assert not sheet[4:12, 4:12].any() and (sheet[4:12, 16:24] == 255).all()
  assert picture_files.sheet([white], least=8).shape == (8, 8, 3)
