"""Tang and Song shi poems: the title, then all lines on one line."""

from tasks import registry
from tasks.datasets.zh_corpora.zh_corpora import Corpus


def document(poem):
  """Title, line break, lines."""
  return poem['title'] + '\n' + ''.join(poem['paragraphs'])


registry.add_text_task('poems_shi', Corpus('poems_shi'), document)
