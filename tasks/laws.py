"""Constitution and statutes of Taiwan, a law a document."""

from tasks import registry
from tasks.datasets.zh_corpora.zh_corpora import Corpus


def document(law):
  """Title; a line for each heading; one for each article with its number."""
  lines = [law['title']]
  for number, text in law['articles']:
    lines.append(text if number == '#' else f'{number}\u3000{text}')
  return '\n'.join(lines)


registry.add_text_task('laws', Corpus('laws'), document)
