"""Couplets of regulated verse: given the first line, write the second."""

from tasks import registry
from tasks.datasets.zh_corpora.zh_corpora import Corpus


def pair(couplet):
  """First line and line break; second line."""
  return couplet['up'] + '\n', couplet['down']


def document(couplet):
  """Both lines."""
  return ''.join(pair(couplet))


registry.add_prefix_task('couplets_verse', Corpus('couplets_verse'), pair)
registry.add_text_task('couplets_verse_lm', Corpus('couplets_verse'), document)
