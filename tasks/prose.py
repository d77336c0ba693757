"""Declares tasks of prose: Lu Xun, the great novels, and documentation."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def titled(record: Record) -> str:
  """The title, and the text below it."""
  return record['title'] + '\n' + record['text']


def page(record: Record) -> str:
  """The unchanged text of a markdown page."""
  return record['text']


registry.add_text_task('luxun', Corpus('luxun'), titled)
registry.add_text_task('luxun_hant', Corpus('luxun'), titled, convert='s2t')
registry.add_text_task('novels', Corpus('novels'), titled)
registry.add_text_task('novels_hant', Corpus('novels'), titled, convert='s2t')
registry.add_text_task('react_docs', Corpus('react_docs'), page)
