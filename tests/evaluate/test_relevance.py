"""A judge of titles that counts characters."""

import math

import pytest

from moe.evaluate import relevance

PAIRS = [
  ('江月', '江水月光'),
  ('江行', '江水舟行'),
  ('山寺', '山僧寺鐘'),
  ('山居', '山中'),
]
TITLES = ['江月', '山寺']


@pytest.fixture
def judge():
  return relevance.TitleJudge(TITLES, PAIRS)


def test_a_score_worked_out_by_hand(judge):
  # 江 is in 2 of 4 titles, so p(江) = (2 + 1) / (4 + 1) = 0.6. Both poems with
  # 水 have 江 in their titles, so p(江 | 水) = (2 + 0.6) / (2 + 1).
  expected = math.log((2 + 0.6) / 3 / 0.6)
  assert judge.score('江', '水，水。') == pytest.approx(expected)


def test_a_poem_without_a_known_character_says_nothing_for_any_title(judge):
  assert judge.score('江', '，') == -math.inf
  assert not relevance.is_matched(judge, TITLES, '，')


def test_each_poem_finds_its_title_in_its_group(judge):
  poems = [['水光', '僧鐘'], ['僧', '中寺']]
  shares = relevance.matched_shares(judge, TITLES, poems)
  assert shares.tolist() == [[True, False], [True, True]]
