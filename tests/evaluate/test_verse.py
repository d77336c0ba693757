"""Measures of verse: form, tones, rhyme and word classes."""

import pathlib

import pytest

from moe.evaluate import verse

READINGS = {
  '平': [('ing', 2)],
  '仄': [('e', 4)],
  '兩': [('ang', 1), ('ang', 4)],
  '入': [('u', 1)],
  '星': [('ing', 1)],
  '風': [('eng', 1)],
  '光': [('uang', 1)],
}
ENTERING = frozenset('入')


def readings(character):
  return READINGS.get(character, [])


@pytest.mark.parametrize(
  'character, level, oblique',
  [
    ('平', True, False),
    ('仄', False, True),
    ('兩', True, True),
    ('入', False, True),
    ('？', True, True),
  ],
)
def test_tones_are_those_of_mandarin_but_for_the_entering_tone(
  character, level, oblique
):
  assert verse.tones(character, readings, ENTERING) == (level, oblique)


@pytest.mark.parametrize(
  'line, is_kept',
  [
    ('平平仄仄平', True),
    ('平仄仄平仄', True),
    ('平平仄平平', False),
    ('仄入仄平仄仄平', True),
    # 兩 can be level or oblique. In the next two lines, one of these readings
    # fits the pattern. In the last line, neither does.
    ('平兩仄入平', True),
    ('平兩仄平平', True),
    ('仄平仄兩仄仄平', False),
  ],
)
def test_even_characters_alternate(line, is_kept):
  assert verse.is_tone_pattern_kept(line, readings, ENTERING) == is_kept


def test_couplets_are_opposed_in_even_places_and_at_the_end():
  opposed = lambda up, down: verse.are_tones_opposed(
    up, down, readings, ENTERING
  )
  assert opposed('仄仄平平仄', '平平仄仄平')
  assert not opposed('仄仄平平平', '平平仄仄平')
  assert not opposed('仄仄平平仄', '平平仄平')


def test_even_lines_rhyme_by_class():
  # The finals ing and eng are in one rhyme class, uang is in another.
  assert verse.is_rhymed(['仄', '星', '仄', '風'], readings)
  assert not verse.is_rhymed(['仄', '星', '仄', '光'], readings)
  assert not verse.is_rhymed(['仄', '星'], readings)


def test_no_final_is_in_two_classes():
  finals = [final for found in verse.RHYMES.values() for final in found]
  assert len(finals) == len(set(finals))
  assert len(verse.RHYMES) == 14


def test_a_form_is_lines_of_chinese_characters():
  assert verse.is_form_kept('春眠。夜來，', 2, 2)
  assert not verse.is_form_kept('春眠。夜來，', 2, 3)
  assert not verse.is_form_kept('春a。夜來，', 2, 2)


CLASSES = {'白': 'colour', '黃': 'colour', '日': 'sky', '河': 'land'}


@pytest.mark.parametrize(
  ('up', 'down', 'found'),
  [('白日依', '黃河入', (1, 2)), ('依', '入', (0, 0)), ('白', '入', (0, 1))],
)
def test_word_classes_agree_where_one_of_them_is_known(up, down, found):
  assert verse.class_agreement(up, down, CLASSES) == found


def test_no_character_has_two_word_classes():
  lines = pathlib.Path(verse.__file__).with_name('word_classes.txt')
  text = lines.read_text(encoding='utf-8').splitlines()
  characters = ''.join(x.split()[1] for x in text if x[:1] != '#')
  assert len(characters) == len(set(characters)) == len(verse.load_classes())


def test_sentence_ends_share_the_rhyme_that_most_of_them_have():
  lyric = '平風。仄平，星。光。仄星。'
  # The sentences end in 風, 星, 光 and 星. All but 光 are in the class 庚.
  assert verse.shared_rhyme(lyric, readings) == 0.75
  assert verse.shape_of(lyric) == (2, 2, 1, 1, 2)
