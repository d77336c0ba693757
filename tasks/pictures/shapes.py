"""Generates pictures of coloured shapes with captions.

A picture depends only on its split and its number, so every machine makes the
same pictures. In the split 'unseen', each picture has an object with a triple
of colour, form and size that never occurs in training. But each pair of these
attributes does occur in training. In the split 'unseen_pairs', each picture has
an object with a pair of colour and form that never occurs in training.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from tasks.pictures import drawing, scenes
from tasks.pictures.scenes import Scene, Thing

_WHITE = (255, 255, 255)
# Size word -> about half of the height of an object, as a share of the picture.
_RADIUS = {'小': 0.09, '中等': 0.13, '大': 0.17}
# Coordinates of the three places along a row or column, as shares of the side.
_CENTRES = (0.2, 0.5, 0.8)
_KINDS, _RATES = ('one', 'two', 'many'), (0.5, 0.3, 0.2)


@dataclasses.dataclass(frozen=True)
class Shapes:
  """A source of pictures of shapes.

  Attributes:
    num_pictures: how many pictures the split 'train' has; the other splits have
      a twentieth of them.
    size: pixels of height and width.
  """

  num_pictures: int = 20_000
  size: int = 32
  splits: ClassVar[tuple[str, ...]] = (
    'train',
    'validation',
    scenes.UNSEEN,
    scenes.UNSEEN_PAIRS,
  )

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """{'picture', 'caption', 'facts'} of each picture of a split.

    Raises:
      ValueError: if the split is unknown.
    """
    if split not in self.splits:
      raise ValueError(
        f'A split must be one of {", ".join(self.splits)}, got {split!r}.'
      )
    return self._records(split)

  def _records(self, split: str) -> Iterator[dict[str, Any]]:
    count = self.num_pictures if split == 'train' else self.num_pictures // 20
    for number in range(count):
      rng = np.random.default_rng([self.splits.index(split), number])
      is_held_out = split in (scenes.UNSEEN, scenes.UNSEEN_PAIRS)
      scene = random_scene(rng, split if is_held_out else '')
      yield {
        'picture': render(scene, self.size, rng),
        'caption': scenes.caption(scene, int(rng.integers(12))),
        'facts': {'kind': scene.kind, **scene.in_order.attributes},
      }


def random_scene(rng: np.random.Generator, held_out: str = '') -> Scene:
  """Draws a random scene.

  Args:
    rng: random generator.
    held_out: the `held_out_split` of the first object. That of the second
      object is always ''.
  """
  kind = rng.choice(_KINDS, p=_RATES)
  first = _random_thing(rng, held_out)
  if kind == 'one':
    return Scene((first,), place=str(rng.choice(list(scenes.PLACES))))
  if kind == 'many':
    return Scene((first,), number=int(rng.choice(list(scenes.NUMBERS))))
  second = _random_thing(rng, '')
  while (second.colour, second.form) == (first.colour, first.form):
    second = _random_thing(rng, '')
  return Scene((first, second), relation=str(rng.choice(scenes.RELATIONS)))


def _random_thing(rng: np.random.Generator, held_out: str) -> Thing:
  while True:
    thing = Thing(
      str(rng.choice(list(scenes.COLOURS))),
      str(rng.choice(scenes.FORMS)),
      str(rng.choice(scenes.SIZES)),
    )
    if thing.held_out_split == held_out:
      return thing


def render(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
  """Draws a scene on white, uint8 [size, size, 3].

  Args:
    scene: the contents of the picture.
    size: pixels of height and width.
    rng: random generator for small shifts and shades of each object.
  """
  picture = drawing.ground(size, _WHITE)
  things = scene.things * scene.number if scene.number > 1 else scene.things
  for thing, (x, y) in zip(things, _centres(scene, rng), strict=True):
    x, y = np.array([x, y]) + rng.uniform(-0.02, 0.02, 2)
    radius = _RADIUS[thing.size] * rng.uniform(0.95, 1.05)
    shade = rng.normal(0, 6)
    colour = np.clip(np.array(scenes.COLOURS[thing.colour]) + shade, 0, 255)
    drawing.paint(picture, _cover(thing.form, x, y, radius), colour)
  return drawing.finished(picture)


def _centres(
  scene: Scene, rng: np.random.Generator
) -> list[tuple[float, float]]:
  """The centre (x, y) of each object."""
  if scene.kind == 'one':
    row, column = scenes.PLACES[scene.place]
    return [(_CENTRES[column], _CENTRES[row])]
  if scene.kind == 'two':
    near, far = rng.uniform(0.22, 0.27), rng.uniform(0.73, 0.78)
    across = rng.uniform(0.35, 0.65, 2)
    along = (near, far) if scene.relation in ('左邊', '上面') else (far, near)
    pairs = list(zip(along, across, strict=True))
    is_beside = scene.relation in ('左邊', '右邊')
    return pairs if is_beside else [(y, x) for x, y in pairs]
  corners = [(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
  chosen = rng.permutation(len(corners))[: scene.number]
  return [corners[i] for i in chosen]


def _cover(form: str, x: float, y: float, radius: float) -> drawing.Cover:
  """Makes the shape of a form, with this centre and radius."""
  if form == '圓形':
    return drawing.disc(x, y, radius)
  if form == '十字':
    thin = 0.36
    unit = np.array(
      [
        *((thin, 1), (thin, thin), (1, thin)),
        *((1, -thin), (thin, -thin), (thin, -1)),
        *((-thin, -1), (-thin, -thin), (-1, -thin)),
        *((-1, thin), (-thin, thin), (-thin, 1)),
      ]
    )
  elif form == '五角星':
    reach = np.where(np.arange(10) % 2 == 0, 1.15, 0.48)
    unit = reach[:, None] * _circle(10)
  elif form == '方形':
    unit = 0.88 * np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
  elif form == '三角形':
    unit = 1.15 * _circle(3)
  else:  # The form is 菱形, a diamond.
    unit = np.array([(0, -1.15), (0.72, 0), (0, 1.15), (-0.72, 0)])
  return drawing.polygon(unit * radius + np.array([x, y]))


def _circle(num_points: int) -> np.ndarray:
  """Points on the unit circle; the first one is at the top."""
  angle = 2 * math.pi * np.arange(num_points) / num_points
  return np.stack([np.sin(angle), -np.cos(angle)], axis=1)
