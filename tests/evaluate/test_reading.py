"""Prompts of reading comprehension, and scores worked out by hand."""

import pytest

from moe.evaluate import reading


@pytest.mark.parametrize(
  'right, given, exact, f1',
  [
    ('the Cat', 'a cat!', 1, 1),
    # The precision is 1 of 2 words, the recall 1 of 3, so F1 is 2 / 5.
    ('red blue green', 'red house', 0, 2 / 5),
    ('cat', 'dog', 0, 0),
    ('cat', '', 0, 0),
  ],
)
def test_squad_compares_words(right, given, exact, f1):
  assert reading.squad_exact(right, given) == exact
  assert reading.squad_f1(right, given) == pytest.approx(f1)


@pytest.mark.parametrize(
  'right, given, exact, f1',
  [
    ('光榮和ω-force', '光榮和 ω-FORCE。', 1, 1),
    # The longest common run has 2 of the 3 given and of the 4 right characters.
    ('春眠不覺', '眠不知', 0, 4 / 7),
    ('春', '秋', 0, 0),
  ],
)
def test_cmrc_compares_the_longest_shared_run(right, given, exact, f1):
  assert reading.character_exact(right, given) == exact
  assert reading.character_f1(right, given) == pytest.approx(f1)


def test_the_best_of_several_right_answers_counts():
  assert reading.best(reading.character_exact, ('春', '秋'), '秋') == 1


def test_prompts_are_those_of_the_harness_in_the_script_of_the_set():
  sets = {one.name: one for one in reading.READINGS}
  row = {
    'context_zh': '天黑了。',
    'context_en': 'Night fell.',
    'qas': [
      {
        'question_zh': '何时？',
        'answer_zh': ['天黑', 0],
        'question_en': 'When?',
        'answer_en': ['Night', 0],
      }
    ],
  }
  (zh,) = sets['xquad_zh'].questions(row)
  assert zh.prompt == '语境: 天黑了。\n\n问题: 何时？\n\n回答:'
  (en,) = sets['xquad_en'].questions(row)
  assert en.prompt == 'Context: Night fell.\n\nQuestion: When?\n\nAnswer:'
  row = {'context': '天黑', 'qas': [{'question': '何', 'answers': [['黑', 1]]}]}
  (drcd,) = sets['drcd'].questions(row)
  assert drcd.prompt == '語境: 天黑\n\n問題: 何\n\n回答:'
  assert drcd.answers == ('黑',)
