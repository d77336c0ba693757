"""Declares tasks of couplets: to write both lines, or only the second one."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def pair(couplet: Record) -> tuple[str, str]:
  """(prompt, answer): the first line with a line break, and the second line."""
  return couplet['up'] + '\n', couplet['down']


def document(couplet: Record) -> str:
  """Both lines, with a line break between them."""
  return ''.join(pair(couplet))


registry.add_prefix_task('couplets_verse', Corpus('couplets_verse'), pair)
registry.add_text_task('couplets_verse_lm', Corpus('couplets_verse'), document)
