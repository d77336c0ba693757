import math

import numpy as np
import pytest

from moe.evaluate import caption_scores


def bleu(captions, references):
  return caption_scores.bleu(caption_scores.bleu_counts(captions, references))


def test_bleu_by_hand():
  # The reference has 5 of the caption's 6 characters, 4 of 5 pairs, 3 of 4
  # triples and 2 of 3 quadruples. The lengths are 6 and 7.
  found = bleu(['紅色圓形在左'], [['紅色圓形在右上']])
  precision = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
  assert found == pytest.approx(precision * math.exp(1 - 7 / 6))


def test_bleu_clips_counts_and_takes_the_closest_length():
  # The second reference has 紅 twice. So 2 of the caption's 4 characters count,
  # 1 of its 3 pairs, and none of its triples.
  assert bleu(['紅紅紅紅'], [['藍', '紅紅藍藍']]) == 0
  # The references have the lengths 6 and 4, the caption has 5. Both are equally
  # close, so the shorter one counts.
  found = bleu(['甲乙丙丁戊'], [['甲乙丙丁戊己', '甲乙丙丁']])
  assert found == pytest.approx(1)


def test_bleu_adds_counts_of_all_captions_before_it_divides():
  # The first caption has 4 of 4 characters right, 3 of 3 pairs and so on. The
  # second has none right. So each precision is a half.
  found = bleu(['甲乙丙丁', '子丑寅卯'], [['甲乙丙丁'], ['天地玄黃']])
  assert found == pytest.approx(0.5)


def test_spaces_do_not_count():
  assert bleu(['甲 乙丙丁'], [['甲乙 丙丁']]) == 1


def test_cider_of_equal_captions_is_10():
  texts = ['紅色圓形', '藍方塊在右']
  found = caption_scores.cider_d(texts, [[text] for text in texts])
  np.testing.assert_allclose(found, 10)


def test_cider_by_hand():
  # The references of both pictures have 甲, so it has the weight log(2 / 2) =
  # 0. 乙, 丙 and all pairs have the weight log 2. We compare 甲乙 with 甲乙丙.
  # The characters have the vectors (0, 1, 0) and (0, 1, 1), with the cosine
  # 1 / sqrt 2. The pairs have the vectors (1, 0) and (1, 1), with the same
  # cosine. The caption has no triples. The lengths differ by 1, which gives the
  # factor exp(-1 / 72).
  found = caption_scores.cider_d(['甲乙', '甲丁'], [['甲乙丙'], ['甲丁']])
  wanted = 10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
  assert found[0] == pytest.approx(wanted)


def test_cider_clips_a_repeated_character():
  # The caption has the vector (4) of character counts, its reference has (1).
  # The clipped product is 1 * 1, and we divide it by 4 * 1. Without clipping,
  # the cosine would be 1. The lengths are 4 and 1, which gives the factor
  # exp(-9 / 72).
  found = caption_scores.cider_d(['乙乙乙乙', '丙'], [['乙'], ['丙']])
  assert found[0] == pytest.approx(10 / 4 * (1 / 4) * math.exp(-9 / 72))


def test_cider_takes_the_mean_over_references():
  found = caption_scores.cider_d(
    ['甲乙丙丁', '子丑寅卯'], [['甲乙丙丁', '天地玄黃'], ['子丑寅卯']]
  )
  assert found[0] == pytest.approx(5) and found[1] == pytest.approx(10)


@pytest.mark.parametrize('score', [bleu, caption_scores.cider_d])
@pytest.mark.parametrize(
  'captions, references', [([], []), (['甲'], []), (['甲'], [[]])]
)
def test_a_caption_without_a_reference_is_refused(score, captions, references):
  with pytest.raises(ValueError, match='at least one reference'):
    score(captions, references)


def test_an_empty_caption_has_the_score_0():
  assert bleu([''], [['甲乙丙丁']]) == 0
  found = caption_scores.cider_d(['', '乙'], [['甲'], ['乙']])
  assert found[0] == 0
