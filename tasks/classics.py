"""Declares tasks of classics, songs and primers, and of the book Huajian ji.

Its lyrics are also in poems_shi, so no mixture may have poems_shi and huajian.
"""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record

_HUAJIAN = '花間集'


def document(record: Record) -> str:
  """The book and the title, then one line for each paragraph."""
  titles = dict.fromkeys(t for t in (record['book'], record['title']) if t)
  return '\n'.join(['・'.join(titles), *record['paragraphs']])


def classic(record: Record) -> str | None:
  """The document of a record, or None if its book is Huajian ji."""
  return None if record['book'] == _HUAJIAN else document(record)


def huajian(record: Record) -> str | None:
  """The document of a record, or None if its book is not Huajian ji."""
  return document(record) if record['book'] == _HUAJIAN else None


registry.add_text_task('classics', Corpus('classics'), classic)
registry.add_text_task('huajian', Corpus('classics'), huajian)
