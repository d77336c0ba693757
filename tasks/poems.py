"""Declares a task of Tang and Song shi poems."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def document(poem: Record) -> str:
  """The title, and below it all verses in one line."""
  return poem['title'] + '\n' + ''.join(poem['paragraphs'])


registry.add_text_task('poems_shi', Corpus('poems_shi'), document)
