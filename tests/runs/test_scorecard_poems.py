"""The part about verse of the scorecard of a run with random parameters."""

import gzip
import json
import lzma

import pytest

from launch.configs import configuration
from moe.runs import scorecard_poems, scorecard_scores

POEM = '春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。'


@pytest.mark.slow
def test_a_model_stands_beside_a_trigram_and_real_poems(
  run_directory, tmp_path
):
  pytest.importorskip('pypinyin', reason='readings need pypinyin')
  rows = {
    scorecard_poems.FILE: [
      {'title': '春曉', 'paragraphs': [POEM]},
      {'title': '無題', 'paragraphs': ['春眠。']},
    ],
    scorecard_poems.COUPLETS: [{'up': '處處聞啼鳥', 'down': '花落知多少'}],
    scorecard_poems.LYRICS: [
      {'rhythmic': '春曉', 'paragraphs': [POEM]},
      {'rhythmic': '不知', 'paragraphs': [POEM]},
    ],
    scorecard_poems.KNOWN_LYRICS: [{'rhythmic': '春曉', 'paragraphs': [POEM]}],
  }
  openers = {'.gz': gzip.open, '.xz': lzma.open}
  (tmp_path / 'text').mkdir()
  for name, lines in rows.items():
    path = tmp_path / name
    with openers[path.suffix](path, 'wt', encoding='utf-8') as f:
      f.writelines(json.dumps(line) + '\n' for line in lines)
  suite = scorecard_scores.SUITES['full']
  asked = scorecard_scores.Asked(suite, 0, tmp_path, 'the command')
  card = scorecard_poems.score_poems(
    configuration.load_run(str(run_directory)), asked, [f'春曉\n{POEM}']
  )
  poems, couplets, lyrics = card['groups']
  # Only the first poem is in one of the forms, and one tune is known.
  assert [group['n'] for group in (poems, couplets, lyrics)] == [1, 1, 1]
  assert poems['writers'] == ['this model', 'trigram', 'held-out texts']
  values = lambda group: {
    name: [one['value'] for one in scores]
    for name, scores in group['measures'].items()
  }
  measures = values(poems)
  # The trigram knows one text, which is the held-out poem.
  assert measures['form kept, share of poems'][1:] == [1, 1]
  assert measures['lines that stand in the training text'][1:] == [1, 1]
  # The whole poem is copied as one run: 24 characters with punctuation.
  assert measures['longest copied run, mean characters'][2] == 24
  measures = values(couplets)
  assert measures['as long as the first line, share of couplets'][2] == 1
  measures = values(lyrics)
  assert measures['a form of its tune, share of lyrics'][1:] == [1, 1]


def test_poems_without_their_file_are_refused(tmp_path):
  suite = scorecard_scores.SUITES['full']
  asked = scorecard_scores.Asked(suite, 0, tmp_path, '')
  with pytest.raises(ValueError, match='is missing'):
    scorecard_poems.score_poems(None, asked, [])
