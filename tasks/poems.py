"""Declares tasks of Tang and Song shi poems.

The inverse task teaches a model to predict the title from the poem. Sampling
can then rank poems by the likelihood of their title, see Li et al. 2016,
https://arxiv.org/abs/1510.03055.
"""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def document(poem: Record) -> str:
  """The title, and below it all verses in one line."""
  return poem['title'] + '\n' + ''.join(poem['paragraphs'])


def inverse_document(poem: Record) -> str:
  """All verses in one line, and below them the title."""
  return ''.join(poem['paragraphs']) + '\n' + poem['title']


registry.add_text_task('poems_shi', Corpus('poems_shi'), document)
registry.add_text_task('poems_inverse', Corpus('poems_shi'), inverse_document)
