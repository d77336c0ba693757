"""Tang and Song shi poems: the title, then one line with all verses."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def document(poem: Record) -> str:
  """Title, line break, lines."""
  return poem['title'] + '\n' + ''.join(poem['paragraphs'])


registry.add_text_task('poems_shi', Corpus('poems_shi'), document)
