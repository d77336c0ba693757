"""Classics of the schools, songs and primers; Huajian ji by itself.

Huajian ji is in the Complete Tang Poems too: poems_shi has its lyrics, some of
them held out, so it belongs in no mixture with them.
"""

from tasks import registry
from tasks.datasets.zh_corpora.zh_corpora import Corpus

_HUAJIAN = '花間集'


def document(piece):
  """Book and title, then a line for each paragraph."""
  titles = dict.fromkeys(t for t in (piece['book'], piece['title']) if t)
  return '\n'.join(['・'.join(titles), *piece['paragraphs']])


def classic(piece):
  """The document of a piece that is not in Huajian ji."""
  return None if piece['book'] == _HUAJIAN else document(piece)


def huajian(piece):
  """The document of a piece in Huajian ji."""
  return document(piece) if piece['book'] == _HUAJIAN else None


registry.add_text_task('classics', Corpus('classics'), classic)
registry.add_text_task('huajian', Corpus('classics'), huajian)
