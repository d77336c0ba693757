"""Draws filled shapes and strokes with smooth edges into pictures.

A shape is a function that tells which points of the picture it covers. If it
covers a third of a pixel's sample points, the pixel gets a third of its colour
from the shape.
"""

from collections.abc import Callable, Sequence

import numpy as np

# Number of sample points of a pixel in each direction.
_SAMPLES = 3
Cover = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ground(size: int, colour: Sequence[int]) -> np.ndarray:
  """A square picture of one colour, float64 [size, size, 3] from 0 to 255."""
  return np.tile(np.array(colour, np.float64), (size, size, 1))


def paint(picture: np.ndarray, cover: Cover, colour: Sequence[int]) -> None:
  """Paints the points that a shape covers, in place.

  Args:
    picture: float64 [Y, X, 3].
    cover: (x, y) -> whether the shape covers the point. x and y go from 0 to 1
      over the picture; y points downwards.
    colour: three numbers from 0 to 255.
  """
  height, width, _ = picture.shape
  rows = (np.arange(height * _SAMPLES) + 0.5) / (height * _SAMPLES)
  columns = (np.arange(width * _SAMPLES) + 0.5) / (width * _SAMPLES)
  inside = cover(columns[None, :], rows[:, None])
  share = inside.reshape(height, _SAMPLES, width, _SAMPLES).mean(axis=(1, 3))
  picture += share[:, :, None] * (np.array(colour) - picture)


def polygon(corners: np.ndarray) -> Cover:
  """Makes a shape that covers a polygon, by the even-odd rule.

  Args:
    corners: [N, 2], x and y of each corner in order.
  """

  def cover(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x0, y0), (x1, y1) in zip(
      corners, np.roll(corners, -1, axis=0), strict=True
    ):
      if y0 != y1:
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside

  return cover


def disc(x0: float, y0: float, radius: float) -> Cover:
  """Makes a shape that covers a disc."""
  return lambda x, y: (x - x0) ** 2 + (y - y0) ** 2 <= radius**2


def stroke(points: np.ndarray, width: float) -> Cover:
  """Makes a shape that covers a line through points, with round ends.

  Args:
    points: [N, 2], x and y of each point in order.
    width: width of the line, as a share of the picture.
  """

  def cover(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
      dx, dy = x1 - x0, y1 - y0
      length = dx * dx + dy * dy
      along = ((x - x0) * dx + (y - y0) * dy) / max(length, 1e-12)
      along = np.clip(along, 0, 1)
      distance = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
      nearest = np.minimum(nearest, distance)
    return nearest <= (width / 2) ** 2

  return cover


def finished(picture: np.ndarray) -> np.ndarray:
  """Rounds a painted picture to uint8."""
  return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)
