"""Classics of the schools, songs and primers; Huajian ji by itself.

poems_shi has the lyrics of Huajian ji too: no mixture may have both of them.
"""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record

_HUAJIAN = '花間集'


def document(piece: Record) -> str:
  """Book and title, then a line for each paragraph."""
  titles = dict.fromkeys(t for t in (piece['book'], piece['title']) if t)
  return '\n'.join(['・'.join(titles), *piece['paragraphs']])


def classic(piece: Record) -> str | None:
  """The document of a piece that is not in Huajian ji; else None."""
  return None if piece['book'] == _HUAJIAN else document(piece)


def huajian(piece: Record) -> str | None:
  """The document of a piece in Huajian ji; else None."""
  return document(piece) if piece['book'] == _HUAJIAN else None


registry.add_text_task('classics', Corpus('classics'), classic)
registry.add_text_task('huajian', Corpus('classics'), huajian)
