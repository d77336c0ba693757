"""Scores of several picture models are joined from their files."""

import json

import pytest

from moe.evaluate.score import Score
from moe.report import pictures_page


def test_scores_of_one_model_are_not_joined_with_themselves(tmp_path):
  for name, model, value in (('a', '0', 1.0), ('b', '1', 3.0), ('c', '0', 5.0)):
    (tmp_path / name).mkdir()
    scores = [Score('share', value, unit='share').as_json()]
    content = {'facts': {'model': model}, 'scores': scores}
    path = tmp_path / name / pictures_page.SCORES
    path.write_text(json.dumps(content))
  one, other, copy = (tmp_path / name for name in 'abc')
  (found,) = pictures_page.join([one, other])
  assert (found.value, found.n) == (2.0, 2)
  for same in ([one, one], [one, other, copy]):
    with pytest.raises(ValueError, match='scores of the same one'):
      pictures_page.join(same)
