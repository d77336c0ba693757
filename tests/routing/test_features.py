"""The tests that FEATURES.md names exist, and its tables are up to date."""

import ast
import pathlib
import re

import pytest

from tests.routing import matrix

PAGE = pathlib.Path(matrix.__file__).parents[2] / 'moe/routing/FEATURES.md'
TEXT = PAGE.read_text()
# (feature, text in our column) of each row with a yes at the start of this
# text.
OURS = re.findall(r'^\| ([^|]*) \| (\[yes\][^|]*) \|', TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize('feature, ours', OURS, ids=[name for name, _ in OURS])
def test_every_yes_names_tests_that_exist(feature, ours):
  del feature
  (path,) = re.findall(r'^\[yes\]\(([^)]*)\)', ours)
  tree = ast.parse((PAGE.parent / path).read_text())
  defined = {node.name for node in tree.body if hasattr(node, 'name')}
  named = set(re.findall(r'`(test_\w+)`', ours))
  assert named and named <= defined


def test_every_test_of_the_recipe_exists():
  found = re.findall(r'\[tests\]\(([^)]*)\)([^|]*)', TEXT)
  assert len(found) > 5
  for path, cell in found:
    tree = ast.parse((PAGE.parent / path).read_text())
    defined = {node.name for node in tree.body if hasattr(node, 'name')}
    named = set(re.findall(r'`(test_\w+)`', cell))
    assert named and named <= defined, path


def test_every_feature_of_ours_is_yes_or_says_no():
  rows = re.findall(r'^\| [^|]* \| (\S+)', TEXT.split('## ')[0], re.MULTILINE)
  assert len(OURS) == sum(cell.startswith('[yes]') for cell in rows) > 20
  assert {cell for cell in rows if not cell.startswith('[yes]')} == {
    'here',
    'no:',
  }


@pytest.mark.parametrize('print_', [matrix.axes_table, matrix.refused_table])
def test_the_tables_of_axes_and_refusals_are_those_printed(print_):
  assert print_() in TEXT


@pytest.mark.slow
def test_the_table_of_pairs_is_the_one_printed():
  assert matrix.table() in TEXT
