"""Figures of groups of verse have a part for each text."""

import pytest

from moe.evaluate import verse, verse_figures


def test_the_mean_of_all_parts_is_the_share_of_distinct_pairs():
  # The pairs are ab, bc; ab, bd; ab. So 3 of 5 are distinct.
  texts = [['abc'], ['ab', 'bd'], ['ab']]
  parts = verse_figures.distinct_parts(texts)
  assert sum(parts) / 3 == pytest.approx(3 / 5)
  # Without text 0, 2 of 3 pairs are distinct; without text 1, also 2 of 3;
  # without text 2, 3 of 4.
  others = [2 / 3, 2 / 3, 3 / 4]
  mean = sum(others) / 3
  assert parts == pytest.approx([3 / 5 + 2 * (mean - x) for x in others])


def test_texts_without_any_pair_have_none():
  assert verse_figures.distinct_parts([['a'], []]) == [0.0, 0.0]


def test_a_figure_of_poems_counts_the_parts_of_each_text():
  figures = verse_figures.of_poems(
    ['平仄。平仄。', '平。'],
    [(2, 2), (1, 2)],
    '平仄',
    lambda c: [],
    frozenset(),
  )
  by_name = {figure.name: figure[1:3] for figure in figures}
  assert by_name['form kept, share of poems'] == ([1.0, 0.0], [1, 1])
  copied = by_name['lines that stand in the training text']
  assert copied == ([2.0, 1.0], [2, 1])
  run = by_name['longest copied run, mean characters']
  assert run == ([2.0, 1.0], [1.0, 1.0])


def test_couplets_count_places_of_known_classes():
  classes = verse.load_classes()
  assert classes['白'] == classes['黃']
  figures = verse_figures.of_couplets(
    ['白'], ['黃'], '', lambda c: [], frozenset()
  )
  (found,) = [one for one in figures if one.name.startswith('word classes')]
  assert found[1:3] == ([1.0], [1.0])
