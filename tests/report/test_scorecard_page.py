"""The page of a scorecard shows verse, relevance and commands."""

import html

import pytest

from moe.evaluate import score
from moe.report import scorecard_page

COMMAND = 'python -m launch.scorecard --checkpoint=runs/verse --suite=full'
SCORES = [
  score.Score(name, value, value - 0.05, value + 0.05, 8, unit='share')
  for name, value in (('ranked', 0.25), ('gain of ranking', 0.1))
]
CARD = {
  'checkpoint': 'runs/verse',
  'step': 5,
  'suite': 'full',
  'shots': 0,
  'harness': '0.4.13',
  'command': COMMAND,
  'date': '2021-06-01',
  'seconds': 1.0,
  'benchmarks': [],
  'readings': [],
  'languages': [],
  'loss': {'skipped': 'no text'},
  'cost': {},
  'licences': [('weights', 'Apache-2.0')],
  'searched': {'chars': 1200, 'documents': 30, 'of': 40},
  'poet': {
    'groups': [
      {
        'name': 'couplets',
        'n': 3,
        'writers': ['this model', 'held-out texts'],
        'measures': {
          'tones opposed': [
            score.Score('x', value, 0.4, 0.95, 3, unit='share').as_json()
            for value in (0.5, 0.9)
          ]
        },
        'samples': ['白日依山盡\n黃河入海流'],
      }
    ],
    'relevance': {
      'scores': [one.as_json() for one in SCORES],
      'titles': 8,
      'poems': 4,
      'group': 16,
    },
    'explanation': ['a line'],
  },
}


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'card.html'
  scorecard_page.write([CARD], [], path)
  return html.unescape(path.read_text(encoding='utf-8'))


def test_each_question_stands_beside_its_command(page):
  questions = scorecard_page._questions(CARD)
  assert len(questions) == 8
  rows = [row for row in page.splitlines() if f'<code>{COMMAND}</code>' in row]
  for question, _, anchor in questions:
    assert any(question in row and f'#{anchor}' in row for row in rows)


def test_each_kind_of_verse_has_its_table_and_samples(page):
  assert '<h3>Couplets</h3>' in page
  assert '90.0% (40.0% to 95.0%)' in page
  assert '白日依山盡\n黃河入海流' in page


def test_the_page_says_how_much_training_text_was_searched(page):
  assert '30 of 40 training documents were searched, 1,200 characters' in page


def test_relevance_is_shown_with_its_interval(page):
  assert '+10.0%' in page
  assert '+5.0% to +15.0%' in page
  assert 'writes 4 poems for each' in page
