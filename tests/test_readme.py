"""The files that the README names exist, and the examples of pages work."""

import pathlib
import re
import sys

import jax
import pytest

from launch.configs import configuration
from moe.runs import build

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
FOLDERS = ('moe', 'launch', 'tasks', 'gin_configs')
PAGES = [README, *(page for f in FOLDERS for page in (ROOT / f).rglob('*.md'))]
ADDING = [
  README,
  ROOT / 'moe/routing/ADDING.md',
  ROOT / 'moe/objectives/ADDING.md',
]


def files_of_the_tree():
  """Yields (folder, file without its ending) for files of the README's tree.

  A line that begins with 'folder/' opens a folder. The words of this line and
  of the lines below are files of the folder, except for words in parentheses.
  """
  text = README.read_text('utf-8')
  tree = text.partition('## The tree')[2].split('```')[1]
  top = folder = None
  for line in tree.splitlines():
    indent, name, rest = re.fullmatch(r'( *)(?:(\w+)/ )?(.*)', line).groups()
    if name:
      top = name if not indent else top
      folder = name if not indent else f'{top}/{name}'
    for file in re.sub(r'\(.*?\)', ' ', rest).split():
      yield folder, file


def test_every_file_of_the_tree_exists():
  named = list(files_of_the_tree())
  assert len(named) > 100
  missing = [
    f'{folder}/{file}'
    for folder, file in named
    if not any((ROOT / folder).glob(f'{file}.*'))
    and not (ROOT / folder / file).exists()
  ]
  assert not missing


def test_the_readme_is_at_most_250_lines():
  assert len(README.read_text('utf-8').splitlines()) <= 250


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page):
  links = re.findall(r'\]\((?!\w+://)([^)#]+)', page.read_text('utf-8'))
  assert not [link for link in links if not (page.parent / link).exists()]


def blocks(page, kind):
  """Yields (file name, block); the last name before a block is its file."""
  parts = page.read_text('utf-8').split('```')
  for before, block in zip(parts[::2], parts[1::2], strict=False):
    language, _, code = block.partition('\n')
    names = re.findall(r'`(my/\w+\.(?:py|gin))`', before)
    if language == kind and names:
      yield names[-1], code


@pytest.mark.parametrize('page', ADDING, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_examples_of_a_page_make_a_run(page, tmp_path, monkeypatch):
  (tmp_path / 'my').mkdir()
  for kind in ('python', 'gin'):
    for name, code in blocks(page, kind):
      (tmp_path / name).write_text(code, 'utf-8')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  [example] = (tmp_path / 'my').glob('*.gin')
  # Modules from the folder 'my' of an earlier page must not be used.
  monkeypatch.delitem(sys.modules, 'my', raising=False)
  run = configuration.load([f'my/{example.name}'], ['MESH_EXPERT=1'])
  assert build.build(run, jax.devices()[:1]).mesh.size == 1
