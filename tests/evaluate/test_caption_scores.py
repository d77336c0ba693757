import math

import numpy as np
import pytest

from moe.evaluate import caption_scores


def test_bleu_by_hand():
  # The reference has 5 of 6 characters, 4 of 5 pairs, 3 of 4 triples and 2 of 3
  # quadruples. 6 characters are 1 fewer than 7.
  found = caption_scores.bleu(['紅色圓形在左'], [['紅色圓形在右上']])
  precision = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
  assert found == pytest.approx(precision * math.exp(1 - 7 / 6))


def test_bleu_clips_counts_and_takes_the_closest_length():
  # The character 紅 occurs twice in the second reference, so of 4 it counts
  # twice; pairs 1 of 3; there is no triple.
  assert caption_scores.bleu(['紅紅紅紅'], [['藍', '紅紅藍藍']]) == 0
  # Both references are 1 away from the length 5: the shorter one counts.
  found = caption_scores.bleu(['甲乙丙丁戊'], [['甲乙丙丁戊己', '甲乙丙丁']])
  assert found == pytest.approx(1)


def test_bleu_adds_counts_of_all_captions_before_it_divides():
  # 4 of 4 and 0 of 4 characters, 3 of 3 and 0 of 3 pairs, and so on: each
  # precision is a half.
  found = caption_scores.bleu(
    ['甲乙丙丁', '子丑寅卯'], [['甲乙丙丁'], ['天地玄黃']]
  )
  assert found == pytest.approx(0.5)


def test_spaces_do_not_count():
  assert caption_scores.bleu(['甲 乙丙丁'], [['甲乙 丙丁']]) == 1


def test_cider_of_equal_captions_is_10():
  texts = ['紅色圓形', '藍方塊在右']
  found = caption_scores.cider_d(texts, [[text] for text in texts])
  np.testing.assert_allclose(found, 10)


def test_cider_by_hand():
  # Two pictures: 甲 is in both references and weighs log(2 / 2) = 0; 乙, 丙 and
  # all pairs weigh log 2. The caption 甲乙 against 甲乙丙: characters have the
  # vectors (0, 1, 0) and (0, 1, 1), and the cosine 1 / sqrt 2; pairs (1, 0) and
  # (1, 1), and 1 / sqrt 2 again. Texts of 2 characters have no triples. A
  # difference of 1 character costs exp(-1 / 72).
  found = caption_scores.cider_d(['甲乙', '甲丁'], [['甲乙丙'], ['甲丁']])
  wanted = 10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
  assert found[0] == pytest.approx(wanted)


def test_cider_clips_a_repeated_character():
  # Characters: the vectors (4) and (1) have the clipped product 1 * 1 over
  # 4 * 1, where the cosine would be 1. 4 characters against 1: exp(-9 / 72).
  found = caption_scores.cider_d(['乙乙乙乙', '丙'], [['乙'], ['丙']])
  assert found[0] == pytest.approx(10 / 4 * (1 / 4) * math.exp(-9 / 72))


def test_cider_takes_the_mean_over_references():
  found = caption_scores.cider_d(
    ['甲乙丙丁', '子丑寅卯'], [['甲乙丙丁', '天地玄黃'], ['子丑寅卯']]
  )
  assert found[0] == pytest.approx(5) and found[1] == pytest.approx(10)


@pytest.mark.parametrize('score', [caption_scores.bleu, caption_scores.cider_d])
@pytest.mark.parametrize(
  'captions, references', [([], []), (['甲'], []), (['甲'], [[]])]
)
def test_a_caption_without_a_reference_is_refused(score, captions, references):
  with pytest.raises(ValueError, match='at least one reference'):
    score(captions, references)


def test_an_empty_caption_has_the_score_0():
  assert caption_scores.bleu([''], [['甲乙丙丁']]) == 0
  found = caption_scores.cider_d(['', '乙'], [['甲'], ['乙']])
  assert found[0] == 0
