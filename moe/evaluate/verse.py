"""Features of Chinese verse: form, tones, rhyme and word classes.

The caller gives the readings of characters in modern Mandarin; they decide
tones and rhymes. There is one exception: characters that had the entering tone
in Middle Chinese are oblique. The fourteen rhyme classes come from the New
Chinese Rhyme table (中華新韻, Chinese Poetry Society 2005), a public list of
finals. A final is a syllable without its first consonant.
"""

import collections
import functools
import importlib.util
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from moe.infer.forms import CHINESE

# Gives the readings of a character as pairs (final, tone), such as ('ang', 2).
Readings = Callable[[str], Sequence[tuple[str, int]]]

# Finals of each rhyme class of 中華新韻.
RHYMES = {
  '麻': ('a', 'ia', 'ua'),
  '波': ('o', 'e', 'uo'),
  '皆': ('ie', 've', 'ue'),
  '開': ('ai', 'uai'),
  '微': ('ei', 'ui', 'uei'),
  '豪': ('ao', 'iao'),
  '尤': ('ou', 'iu', 'iou'),
  '寒': ('an', 'ian', 'uan', 'van'),
  '文': ('en', 'in', 'un', 'uen', 'vn'),
  '唐': ('ang', 'iang', 'uang'),
  '庚': ('eng', 'ing', 'ueng', 'ong', 'iong'),
  '齊': ('i', 'er', 'v'),
  '支': ('-i',),
  '姑': ('u',),
}
_CLASS_OF = {final: name for name, finals in RHYMES.items() for final in finals}
_BREAK = re.compile('[，。？！；、：\n]')


class Tones(NamedTuple):
  """The tone classes that a character can have, by its different readings."""

  level: bool
  oblique: bool


def lines_of(poem: str) -> list[str]:
  """Splits a poem into its lines, without punctuation."""
  return [line for line in _BREAK.split(poem) if line]


def is_form_kept(poem: str, num_lines: int, length: int) -> bool:
  """Whether a poem has `num_lines` lines of `length` Chinese characters."""
  lines = lines_of(poem)
  return len(lines) == num_lines and all(
    len(line) == length and all(CHINESE.fullmatch(c) for c in line)
    for line in lines
  )


def tones(
  character: str, readings: Readings, entering: frozenset[str]
) -> Tones:
  """The tone classes of a character: tones 1 and 2 are level, 3 and 4 oblique.

  A character in `entering` is oblique. If no reading has a tone, the character
  has both classes, so that it breaks no rule.
  """
  if character in entering:
    return Tones(False, True)
  found = [tone for _, tone in readings(character) if tone]
  if not found:
    return Tones(True, True)
  return Tones(any(t < 3 for t in found), any(t > 2 for t in found))


def is_tone_pattern_kept(
  line: str, readings: Readings, entering: frozenset[str]
) -> bool:
  """Whether characters 2, 4 and 6 of a line alternate between tone classes."""
  found = [tones(c, readings, entering) for c in line[1:7:2]]
  starts = [Tones(True, False), Tones(False, True)]
  return any(
    all(tone[(start.oblique + place) % 2] for place, tone in enumerate(found))
    for start in starts
  )


def are_tones_opposed(
  up: str, down: str, readings: Readings, entering: frozenset[str]
) -> bool:
  """Whether two lines have opposite tone classes at all places that count.

  The places that count are the characters 2, 4, ... and the last one. The
  result is False if the lines differ in length.
  """
  if len(up) != len(down):
    return False
  places = [*range(1, len(up) - 1, 2), len(up) - 1]
  for place in places:
    a = tones(up[place], readings, entering)
    b = tones(down[place], readings, entering)
    if not ((a.level and b.oblique) or (a.oblique and b.level)):
      return False
  return True


def rhyme_classes(character: str, readings: Readings) -> set[str]:
  """The rhyme classes to which the readings of a character belong."""
  found = {_CLASS_OF.get(final) for final, _ in readings(character)}
  return found - {None}


def is_rhymed(lines: Sequence[str], readings: Readings) -> bool:
  """Whether all lines of even number end in the same rhyme class.

  False if there are fewer than two such lines.
  """
  ends = [rhyme_classes(line[-1], readings) for line in lines[1::2]]
  return len(ends) > 1 and bool(set.intersection(*ends))


def class_agreement(
  up: str, down: str, classes: Mapping[str, str]
) -> tuple[int, int]:
  """(places where two lines have equal classes, places that count).

  A place counts if at least one of its two characters has a class.
  """
  known = [
    (classes.get(a), classes.get(b)) for a, b in zip(up, down, strict=False)
  ]
  known = [pair for pair in known if pair != (None, None)]
  return sum(a == b for a, b in known), len(known)


def shape_of(lyric: str) -> tuple[int, ...]:
  """Lengths of the lines of a lyric."""
  return tuple(map(len, lines_of(lyric)))


def shared_rhyme(lyric: str, readings: Readings) -> float:
  """The share of sentence ends that are in the most common rhyme class."""
  ends = [part[-1] for part in lyric.split('。') if part]
  counts = collections.Counter(
    name for end in ends for name in rhyme_classes(end, readings)
  )
  return max(counts.values(), default=0) / len(ends) if ends else 0.0


def load_classes() -> dict[str, str]:
  """Loads the class of each character from `word_classes.txt`."""
  text = pathlib.Path(__file__).with_name('word_classes.txt')
  found = {}
  for line in text.read_text(encoding='utf-8').splitlines():
    if line[:1] != '#':
      name, characters = line.split()
      found |= dict.fromkeys(characters, name)
  return found


def load_entering() -> frozenset[str]:
  """Loads the characters of the entering tone that Mandarin reads as level."""
  text = pathlib.Path(__file__).with_name('entering_tone.txt')
  lines = text.read_text(encoding='utf-8').splitlines()
  return frozenset(''.join(line for line in lines if line[:1] != '#'))


def load_readings() -> Readings:
  """Loads a function that gives Mandarin readings, from pypinyin.

  Raises:
    ValueError: if pypinyin is not installed.
  """
  if not importlib.util.find_spec('pypinyin'):
    raise ValueError('pypinyin must be installed, got none: pip install it.')
  # The package is optional.
  import pypinyin
  from pypinyin.contrib import tone_convert

  @functools.cache
  def readings(character: str) -> tuple[tuple[str, int], ...]:
    found = []
    syllables = pypinyin.pinyin(
      character, style=pypinyin.Style.TONE3, heteronym=True, errors='ignore'
    )
    for syllable in syllables[0] if syllables else ():
      tone = int(syllable[-1]) if syllable[-1:].isdigit() else 0
      plain = tone_convert.to_finals(syllable, strict=True)
      # In zhi chi shi ri zi ci si, the letter i stands for another vowel than
      # in other syllables. So these syllables get a separate final.
      buzzing = re.fullmatch('(zh|ch|sh|r|z|c|s)i[1-5]?', syllable)
      plain = '-i' if buzzing else plain.replace('ü', 'v')
      found.append((plain, tone))
    return tuple(found)

  return readings
