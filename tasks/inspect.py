"""Prints lists of tasks, and documents of a task with their statistics."""

import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from moe.data import cache
from moe.modalities.text import Vocabulary, train_vocabulary
from tasks import modules, registry
from tasks.stores import register_tasks

_logger = logging.getLogger(__name__)

_MAX_DOCUMENTS = 10_000
_VOCAB_SIZE = 8192
_BAR_WIDTH = 40
_MAX_SHOWN_CHARS = 400


def list_tasks() -> None:
  """Prints every task and every mixture, without importing TensorFlow."""
  modules.load()
  import rich.console
  import rich.table

  console = rich.console.Console()
  header, rows = ('task', 'features', 'splits', 'source'), sorted(_task_rows())
  table = rich.table.Table(title='tasks')
  free = console.width - 13  # Borders and spaces take 13 columns.
  for cells in zip(header, *rows, strict=True):
    # If a terminal is too narrow, the last column (the source) is shortened.
    width = min(max(map(len, cells)), max(free, len(cells[0])))
    table.add_column(cells[0], no_wrap=True, width=width)
    free -= width
  for row in rows:
    table.add_row(*row)
  mixtures = rich.table.Table('mixture', 'tasks', title='mixtures')
  for row in sorted(_mixture_rows()):
    mixtures.add_row(*row)
  console.print(table, mixtures, sep='\n\n')


def _task_rows() -> Iterator[tuple[str, str, str, str]]:
  """(name, features, splits, source) of each task."""
  parts = [
    (task.name, task.features, task.source.splits, task.source)
    for task in registry.TASKS.values()
  ] + [
    (task.name, task.output_features, task.splits, task.source)
    for task in modules.of_seqio()
    if not hasattr(task, 'get_rate')  # A mixture has rates, a task has none.
  ]
  for name, features, splits, source in parts:
    yield name, ' '.join(features), ' '.join(splits), str(source)[:60]


def _mixture_rows() -> Iterator[tuple[str, str]]:
  """(name, tasks) of each mixture."""
  for name, tasks in registry.MIXTURES.items():
    yield name, ' '.join(sorted(tasks))
  for mixture in modules.of_seqio():
    if hasattr(mixture, 'get_rate'):
      yield mixture.name, ' '.join(task.name for task in mixture.tasks)


def inspect_task(
  task: str, split: str, num_shown: int, vocabulary_file: str | None
) -> None:
  """Prints some documents of a task, and statistics of its first 10,000.

  Args:
    task: task or mixture.
    split: the split of the task.
    num_shown: how many documents to print.
    vocabulary_file: the vocabulary that counts tokens; with None, a temporary
      one is trained on the task.

  Raises:
    ValueError: if there is no such task, split or vocabulary, or no document.
  """
  # The vocabulary is read first, so that its errors come before the slow import
  # of TensorFlow.
  vocabulary = Vocabulary(vocabulary_file) if vocabulary_file else None
  register_tasks([task])
  import rich.console
  import rich.panel
  import rich.text

  cache.tasks_with(task, split)
  documents = list(
    itertools.islice(cache.documents(task, split), _MAX_DOCUMENTS)
  )
  if not documents:
    raise registry.no_documents(task, split)
  if vocabulary is None:
    vocabulary = _temporary_vocabulary(task)
  console = rich.console.Console()
  for number, document in enumerate(documents[:num_shown]):
    # The prompt is printed dim. Text objects are used, since rich would read
    # brackets in a string as markup.
    text = rich.text.Text()
    for feature, part in document.items():
      style = 'dim' if feature == 'inputs' else ''
      text.append(part[:_MAX_SHOWN_CHARS], style)
      if len(part) > _MAX_SHOWN_CHARS:
        text.append(f' … ({len(part)} characters)', 'italic')
    console.print(rich.panel.Panel(text, title=f'{task}/{split} {number}'))
  texts = [''.join(document.values()) for document in documents]
  console.print(measures(texts, vocabulary))
  console.print('characters in a document', style='bold')
  console.print(histogram([len(text) for text in texts]), markup=False)
  if len(documents) == _MAX_DOCUMENTS:
    _logger.info(f'Only the first {_MAX_DOCUMENTS} documents were measured.')


def _temporary_vocabulary(task: str) -> Vocabulary:
  """A vocabulary, in memory only, of the first 10,000 training documents."""
  documents = itertools.islice(cache.documents(task, 'train'), _MAX_DOCUMENTS)
  texts = (''.join(document.values()) for document in documents)
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, 'temporary.model')
    vocabulary = train_vocabulary(texts, _VOCAB_SIZE, path)
  _logger.info(
    f'Tokens are counted with a temporary vocabulary of {vocabulary.size}'
    f' pieces, trained on the first {_MAX_DOCUMENTS} documents of'
    f' {task}/train.'
  )
  return vocabulary


def measures(texts: Sequence[str], vocabulary: Vocabulary):
  """A table of statistics of documents and of their tokens.

  Args:
    texts: documents, at least one.
    vocabulary: tokenises them.

  Returns:
    A rich table.
  """
  import rich.table

  chars = np.array([len(text) for text in texts])
  num_tokens = num_bytes = num_unknown = num_broken = 0
  for text in texts:
    ids = vocabulary.encode(text)
    num_tokens += len(ids)
    num_bytes += sum(vocabulary.is_byte(id) for id in ids)
    num_unknown += ids.count(vocabulary.unk)
    num_broken += vocabulary.decode(ids) != text
  table = rich.table.Table(show_header=False)
  for name, value in (
    ('documents', f'{len(texts):,}'),
    ('characters', f'{chars.sum():,}'),
    (
      'characters in a document',
      f'least {chars.min():,}, median {np.median(chars):,.0f}, mean'
      f' {chars.mean():,.1f}, most {chars.max():,}',
    ),
    ('different characters', f'{len(set().union(*texts)):,}'),
    ('pieces of the vocabulary', f'{vocabulary.size:,}'),
    ('tokens, end marks not counted', f'{num_tokens:,}'),
    ('characters per token', f'{chars.sum() / max(num_tokens, 1):.3f}'),
    ('unknown tokens', f'{num_unknown / max(num_tokens, 1):.4%}'),
    ('tokens that are single bytes', f'{num_bytes / max(num_tokens, 1):.4%}'),
    ('documents that their tokens do not restore', f'{num_broken:,}'),
  ):
    table.add_row(name, value)
  return table


def histogram(values: Sequence[int]) -> str:
  """Draws a histogram with bars for 0, 1, 2-3, 4-7, 8-15 and so on.

  Args:
    values: at least one; each is at least 0.

  Returns:
    Text with one line for each range, from the least to the greatest value.
  """
  # Values with the same number of binary digits share a bar.
  digits = np.array([int(value).bit_length() for value in values])
  counts = np.bincount(digits)
  lines = []
  for digit in range(int(digits.min()), counts.size):
    low, high = (1 << digit) >> 1, (1 << digit) - 1
    bar = '█' * round(_BAR_WIDTH * counts[digit] / counts.max())
    lines.append(f'{low:>7}-{high:<7} {counts[digit]:>7} {bar}')
  return '\n'.join(lines)
