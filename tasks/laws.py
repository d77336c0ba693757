"""Declares a task of Taiwan's constitution and statutes, a law per document."""

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def document(law: Record) -> str:
  """The title, then the headings and articles; an article has its number."""
  lines = [law['title']]
  for number, text in law['articles']:
    lines.append(text if number == '#' else f'{number}\u3000{text}')
  return '\n'.join(lines)


registry.add_text_task('laws', Corpus('laws'), document)
