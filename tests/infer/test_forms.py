"""Templates of verse, and tables of the tokens that a template allows."""

import itertools

import pytest

from moe.infer import forms
from moe.infer.forms import BARRED

EOS = 1
# Id:     0     1     2     3     4     5       6     7     8     9
PIECES = [None, None, None, '春', '秋', '春風', '，', '。', '月，', 'a']
PIECES += [b'\xe6', '\n', '雪。秋']


@pytest.mark.parametrize(
  ('form', 'expected'),
  [
    ('quatrain5', '字字字字字，字字字字字。' * 2),
    ('quatrain7', '字字字字字字字，字字字字字字字。' * 2),
    ('octave5', '字字字字字，字字字字字。' * 4),
    ('octave7', '字字字字字字字，字字字字字字字。' * 4),
  ],
)
def test_a_poem_has_its_lines_and_marks(form, expected):
  assert forms.template(form, '題') == expected


def test_a_couplet_mirrors_its_first_line():
  assert forms.template('couplet', '白日依山盡') == '字' * 5
  assert forms.template('couplet', '春風，又綠；〇𠀀') == '字字，字字；字字'


@pytest.mark.parametrize(
  ('form', 'prompt', 'message'),
  [
    ('sonnet', '題', "one of couplet, .*; got 'sonnet'"),
    ('quatrain5', '', 'needs the title'),
    ('quatrain5', '題\n句', 'one line'),
    ('couplet', ' ', 'needs the first line'),
    ('couplet', '春a風', "punctuation only, got 'a'"),
    ('couplet', '春 風', "punctuation only, got ' '"),
    ('couplet', '，。', 'at least one Chinese character'),
  ],
)
def test_what_cannot_start_a_form_is_refused(form, prompt, message):
  with pytest.raises(ValueError, match=message):
    forms.template(form, prompt)


def test_pieces_fit_where_all_their_characters_do():
  # The offsets of 字字，字 and of its end are 0 to 4.
  table = forms.form_table(PIECES, EOS, '字字，字')
  fits = {
    offset: {i: int(jump) for i, jump in enumerate(row) if jump != BARRED}
    for offset, row in enumerate(table)
  }
  assert fits == {
    0: {3: 1, 4: 1, 5: 2},  # A piece of one character, or of two.
    1: {3: 1, 4: 1, 8: 2},  # A character, or a character with the comma.
    2: {6: 1},
    3: {3: 1, 4: 1},  # The piece 春風 would be longer than the template.
    4: {EOS: 0},
  }


def test_every_way_through_the_table_fills_the_template():
  filled = '字字，字'
  table = forms.form_table(PIECES, EOS, filled)

  def texts(offset):
    if offset == len(filled):
      return ['']
    return [
      PIECES[i] + rest
      for i in (table[offset] != BARRED).nonzero()[0]
      for rest in texts(offset + table[offset, i])
    ]

  written = texts(0)
  assert {forms.shape(text) for text in written} == {filled}
  # For 字字， there are 4 ways with two pieces 春 or 秋 and a comma, 1 way with
  # 春風 and a comma, and 2 ways with 春 or 秋 and then 月，. The last character
  # is 春 or 秋. So there are 7 x 2 texts.
  assert len(written) == 14
  assert set(written) == {
    a + b
    for a, b in itertools.product(
      ['春春，', '春秋，', '秋春，', '秋秋，', '春風，', '春月，', '秋月，'],
      '春秋',
    )
  }


def test_a_mark_that_the_vocabulary_lacks_is_named():
  with pytest.raises(ValueError, match="a piece for '！'"):
    forms.form_table(PIECES, EOS, '字！')


def test_free_text_may_use_bytes_but_no_control_pieces():
  (row,) = forms.free_table(PIECES, EOS)
  assert row[[0, 2]].tolist() == [BARRED, BARRED]
  assert row[EOS] == 0
  assert not row[3:].any()
