"""Declares tasks of Song ci lyrics and Yuan qu arias."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def ci_document(lyric: Record) -> str:
  """The name of the tune, and below it all verses in one line."""
  return lyric['rhythmic'] + '\n' + ''.join(lyric['paragraphs'])


def qu_document(aria: Record) -> str:
  """The title, which names play and tune, then all verses in one line."""
  return aria['title'] + '\n' + ''.join(aria['paragraphs'])


registry.add_text_task('ci', Corpus('ci'), ci_document)
registry.add_text_task('qu', Corpus('qu'), qu_document)
