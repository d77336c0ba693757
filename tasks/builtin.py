"""Declares the corpus that ships with the project (tasks/corpora/README.md)."""

import pathlib

from tasks import registry, text_files
from tasks.text_files import Fields, Record

_DIRECTORY = pathlib.Path(__file__).resolve().parent / 'corpora'
_MARKS = {'user': '問：', 'persona': '答：'}


def corpus(name: str, **fields: Fields) -> text_files.LineSource:
  """The source for a file of the built-in corpus. Records name their split."""
  return text_files.json_lines(
    _DIRECTORY / f'{name}.jsonl',
    {'id': str, 'split': str} | fields,
    split_fn=lambda record: record['split'],
    max_bad_fraction=0,
  )


def couplet(record: Record) -> str:
  """Both lines, with a line break between them."""
  return record['up'] + '\n' + record['down']


def poem(record: Record) -> str:
  """The title, and below it all verses in one line."""
  return record['title'] + '\n' + ''.join(record['paragraphs'])


def essay(record: Record) -> str:
  """The title, and the text below it."""
  return record['title'] + '\n' + record['text']


def dialogue(record: Record) -> str:
  """The name of the persona, then a line for each turn."""
  turns = [_MARKS[turn['role']] + turn['text'] for turn in record['turns']]
  return '\n'.join([record['persona'], *turns])


registry.add_text_task(
  'builtin_couplets', corpus('couplets', up=str, down=str), couplet
)
registry.add_text_task(
  'builtin_poems', corpus('poems', title=str, paragraphs=[str]), poem
)
registry.add_text_task(
  'builtin_essays', corpus('essays', title=str, text=str), essay
)
registry.add_text_task(
  'builtin_dialogues',
  corpus('dialogues', persona=str, turns=[{'role': str, 'text': str}]),
  dialogue,
)
