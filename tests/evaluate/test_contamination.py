"""An item that shares a run of words or characters with training is found."""

import numpy as np
import pytest

from moe.evaluate import contamination

CHINESE = '春眠不覺曉處處聞啼鳥夜來風雨聲花落知多少'
ENGLISH = 'one two three four five six seven eight nine'


@pytest.mark.parametrize(
  'item, train, shared',
  [
    # 13 Chinese characters are a run; punctuation between them does not count.
    (CHINESE, '春眠不覺曉，處處聞啼鳥。\n夜來風！', True),
    (CHINESE, '春眠不覺曉，處處聞啼鳥。\n夜來', False),
    # 8 words are a run, in upper or lower case.
    (ENGLISH, 'One, two three four five six SEVEN eight; ten', True),
    (ENGLISH, 'one two three four five six seven nine eight', False),
    # A Latin text is compared by words, so 13 shared letters are not enough.
    (ENGLISH, 'one two three four five', False),
  ],
)
def test_a_run_is_found_and_a_shorter_one_is_not(item, train, shared):
  found = contamination.find(['外', item], ['別的', train])
  assert found.tolist() == [False, shared]


def test_a_run_does_not_cross_documents():
  assert not contamination.find([CHINESE], [CHINESE[:10], CHINESE[10:]]).any()


def test_the_longest_shared_run_is_the_one_that_a_search_finds():
  find = contamination.longest_shared_runs
  assert find(['春眠不覺曉', '龍', ''], '他眠不覺。覺曉') == [3, 0, 0]
  random = np.random.RandomState(0)
  draw = lambda size: ''.join(random.choice(list('甲乙丙'), size))
  texts, train = [draw(n) for n in (1, 5, 30, 30)], draw(60)
  slow = [
    max(
      end - start
      for start in range(len(text))
      for end in range(start, len(text) + 1)
      if text[start:end] in train
    )
    for text in texts
  ]
  assert find(texts, train) == slow
  assert find(texts, '') == [0] * 4
