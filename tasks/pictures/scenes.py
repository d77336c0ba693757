"""Describes scenes of coloured shapes, and writes and reads their captions.

A scene has one object, two objects side by side or one above the other, or
several equal objects. `caption` writes one of several sentences about a scene,
`read` understands any of them, and `agreement` tells which attributes of a
scene a sentence gets right.
"""

import dataclasses
import re
from collections.abc import Mapping

COLOURS = {
  '紅': (220, 40, 40),
  '橙': (245, 150, 30),
  '黃': (240, 220, 40),
  '綠': (40, 160, 70),
  '藍': (40, 90, 220),
  '紫': (150, 60, 190),
  '灰': (140, 140, 140),
  '黑': (25, 25, 25),
}
FORMS = ('圓形', '方形', '三角形', '菱形', '十字', '五角星')
SIZES = ('小', '中等', '大')
# Place in a grid of 3 x 3 -> (row, column).
PLACES = {
  '左上角': (0, 0),
  '上方': (0, 1),
  '右上角': (0, 2),
  '左側': (1, 0),
  '正中央': (1, 1),
  '右側': (1, 2),
  '左下角': (2, 0),
  '下方': (2, 1),
  '右下角': (2, 2),
}
# Where the first object lies: left of, right of, above or below the second one.
RELATIONS = ('左邊', '右邊', '上面', '下面')
# Relation of the first object to the second -> that of the second to the first.
_OPPOSITES = {'右邊': '左邊', '下面': '上面'}
NUMBERS = {2: '兩個', 3: '三個', 4: '四個'}
# Splits of pictures with an object that has a combination of attributes that
# never occurs in training: a triple (colour, form, size), or a pair (colour,
# form).
UNSEEN, UNSEEN_PAIRS = 'unseen', 'unseen_pairs'
# One in this many triples is held out.
_ONE_OF = 6
_HELD_OUT_PAIRS = (('橙', '三角形'), ('綠', '十字'), ('灰', '五角星'))
_THING = r'(?P<size{n}>[小大]|中等)(?P<colour{n}>\w)色(?P<form{n}>{forms})'


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object: its colour, form and size, in the words of captions."""

  colour: str
  form: str
  size: str

  def __str__(self) -> str:
    return f'{self.size}{self.colour}色{self.form}'

  @property
  def held_out_split(self) -> str:
    """The only split that shows this object; '' if training shows it, too.

    All objects with a pair of `_HELD_OUT_PAIRS` are in the split
    `UNSEEN_PAIRS`. Another object is in the split `UNSEEN` if the indices of
    its attributes add up to a multiple of `_ONE_OF`. Each pair of attributes of
    such an object is also in triples that are not held out, so all its pairs
    occur in training.
    """
    if (self.colour, self.form) in _HELD_OUT_PAIRS:
      return UNSEEN_PAIRS
    number = list(COLOURS).index(self.colour) + FORMS.index(self.form)
    number += SIZES.index(self.size)
    return '' if number % _ONE_OF else UNSEEN


@dataclasses.dataclass(frozen=True)
class Scene:
  """The contents of a picture.

  Attributes:
    things: one object or two.
    place: place of a single object, a key of `PLACES`; else ''.
    relation: where the first of two objects lies, one of `RELATIONS`; else ''.
    number: how many equal objects there are; above 1, they have no place.
  """

  things: tuple[Thing, ...]
  place: str = ''
  relation: str = ''
  number: int = 1

  @property
  def kind(self) -> str:
    """'one', 'two' (objects with a relation) or 'many' (a number of them)."""
    if self.number > 1:
      return 'many'
    return 'one' if len(self.things) == 1 else 'two'

  @property
  def in_order(self) -> 'Scene':
    """The same scene with its two objects from left to right or downwards.

    'A is right of B' and 'B is left of A' are the same picture.
    """
    if self.relation not in _OPPOSITES:
      return self
    return dataclasses.replace(
      self, things=self.things[::-1], relation=_OPPOSITES[self.relation]
    )

  @property
  def attributes(self) -> dict[str, str | int]:
    """Name of each attribute -> its value; 'colour_0' is the first object's."""
    found = {}
    for n, thing in enumerate(self.things):
      found |= {f'{k}_{n}': v for k, v in dataclasses.asdict(thing).items()}
    rest = {
      'one': {'place': self.place},
      'two': {'relation': self.relation},
      'many': {'number': self.number},
    }
    return found | rest[self.kind]


def of_facts(facts: Mapping[str, str | int]) -> Scene:
  """The scene of a picture, from the facts that are stored with it."""
  things = tuple(
    Thing(facts[f'colour_{n}'], facts[f'form_{n}'], facts[f'size_{n}'])
    for n in range(2)
    if f'colour_{n}' in facts
  )
  return Scene(
    things,
    facts.get('place', ''),
    facts.get('relation', ''),
    facts.get('number', 1),
  )


# Kind of scene -> sentence templates. `caption` fills them in, and `read`
# matches a sentence against them.
TEMPLATES = {
  'one': (
    '{place}有一個{thing0}',
    '一個{thing0}在{place}',
    '圖中{place}畫著{thing0}',
    '{thing0}，位於{place}',
  ),
  'two': (
    '{thing0}在{thing1}的{relation}',
    '{thing1}的{relation}有一個{thing0}',
    '兩個圖形：{thing0}在{thing1}{relation}',
  ),
  'many': (
    '{number}{thing0}',
    '圖中有{number}{thing0}',
    '白底上畫著{number}{thing0}',
  ),
}


def caption(scene: Scene, template: int) -> str:
  """Writes a sentence about a scene.

  Args:
    scene: the scene.
    template: number of the template, modulo the number of templates.
  """
  templates = TEMPLATES[scene.kind]
  things = {f'thing{n}': str(thing) for n, thing in enumerate(scene.things)}
  return templates[template % len(templates)].format(
    **things,
    place=scene.place,
    relation=scene.relation,
    number=NUMBERS.get(scene.number, ''),
  )


def read(text: str) -> Scene | None:
  """The scene that a sentence describes.

  Returns None if the sentence follows no template or has an unknown colour.
  """
  for kind, patterns in _PATTERNS.items():
    for pattern in patterns:
      found = pattern.fullmatch(text.strip())
      if found is None:
        continue
      parts = found.groupdict()
      things = tuple(
        Thing(parts[f'colour{n}'], parts[f'form{n}'], parts[f'size{n}'])
        for n in range(2 if kind == 'two' else 1)
      )
      if not all(thing.colour in COLOURS for thing in things):
        return None
      numbers = {word: number for number, word in NUMBERS.items()}
      return Scene(
        things,
        parts.get('place') or '',
        parts.get('relation') or '',
        numbers.get(parts.get('number') or '', 1),
      )
  return None


def agreement(text: str, scene: Scene) -> dict[str, bool]:
  """Tells which attributes of a scene a sentence gets right.

  Args:
    text: any sentence, such as one that a model has written.
    scene: the scene that the picture shows.

  Returns:
    Attribute -> whether the sentence gets it right; 'all' -> whether all are
    right. If a sentence follows no template or describes another kind of scene,
    every attribute counts as wrong. A sentence may name two objects in either
    order; the attributes are numbered as in `Scene.in_order`.
  """
  described, scene = read(text), scene.in_order
  if described is None or described.kind != scene.kind:
    right = dict.fromkeys(scene.attributes, False)
  else:
    said = described.in_order.attributes
    right = {k: said[k] == v for k, v in scene.attributes.items()}
  return {**right, 'all': all(right.values())}


def _pattern(template: str) -> re.Pattern[str]:
  forms = '|'.join(FORMS)
  parts = {f'thing{n}': _THING.format(n=n, forms=forms) for n in range(2)}
  parts |= {
    'place': f'(?P<place>{"|".join(PLACES)})',
    'relation': f'(?P<relation>{"|".join(RELATIONS)})',
    'number': f'(?P<number>{"|".join(NUMBERS.values())})',
  }
  return re.compile(template.format(**parts))


_PATTERNS = {
  kind: [_pattern(template) for template in templates]
  for kind, templates in TEMPLATES.items()
}
