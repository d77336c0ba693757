"""Song ci lyrics and Yuan qu arias: the tune, then one line with all verses."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def ci_document(lyric: Record) -> str:
  """Name of the tune, line break, lines."""
  return lyric['rhythmic'] + '\n' + ''.join(lyric['paragraphs'])


def qu_document(aria: Record) -> str:
  """Play and tune, line break, lines."""
  return aria['title'] + '\n' + ''.join(aria['paragraphs'])


registry.add_text_task('ci', Corpus('ci'), ci_document)
registry.add_text_task('qu', Corpus('qu'), qu_document)
