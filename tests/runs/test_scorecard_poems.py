"""The poet's card of a run with random parameters."""

import gzip
import json

import pytest

from launch.configs import configuration
from moe.runs import scorecard_poems, scorecard_scores

POEM = '春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。'


@pytest.mark.slow
def test_a_model_stands_beside_a_trigram_and_real_poems(
  run_directory, tmp_path
):
  pytest.importorskip('pypinyin', reason='readings need pypinyin')
  path = tmp_path / scorecard_poems.FILE
  path.parent.mkdir()
  rows = [
    {'title': '春曉', 'paragraphs': [POEM]},
    {'title': '無題', 'paragraphs': ['春眠。']},
  ]
  with gzip.open(path, 'wt', encoding='utf-8') as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)
  suite = scorecard_scores.SUITES['full']
  asked = scorecard_scores.Asked(suite, 0, tmp_path, 'the command')
  card = scorecard_poems.score_poems(
    configuration.load_run(str(run_directory)), asked, [f'春曉\n{POEM}']
  )
  # Only the first row is in one of the forms.
  assert card['n'] == 1
  assert card['writers'] == ['this model', 'trigram', 'held-out poems']
  measures = card['measures']
  # The trigram was trained on one text, the held-out poem, so it repeats this.
  assert measures['form kept, share of poems'][1:] == ['1.000', '1.000']
  assert measures['lines that stand in the training text'][1:] == [
    '1.000',
    '1.000',
  ]
  # The whole poem with its punctuation is copied, which is one run of 24.
  assert measures['longest copied run, mean characters'][2] == '24.000'


def test_poems_without_their_file_are_refused(tmp_path):
  suite = scorecard_scores.SUITES['full']
  asked = scorecard_scores.Asked(suite, 0, tmp_path, '')
  with pytest.raises(ValueError, match='is missing'):
    scorecard_poems.score_poems(None, asked, [])
