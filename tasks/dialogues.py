"""Declares tasks of dialogues and personas.

In a dialogue each turn is a line that begins with the mark of its speaker.
"""

from collections.abc import Sequence

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def mark_turns(turns: Sequence[Record], marks: Sequence[str]) -> str:
  """Writes each turn as a line; the lines begin with two marks alternately."""
  lines = [marks[i % 2] + turn['text'] for i, turn in enumerate(turns)]
  return '\n'.join(lines)


def chat(dialogue: Record) -> str:
  """A chat of two speakers, who are marked 甲 and 乙."""
  return mark_turns(dialogue['turns'], ['甲：', '乙：'])


def exchange(dialogue: Record) -> str:
  """The questions of a record, each followed by its answer."""
  return mark_turns(dialogue['turns'], ['問：', '答：'])


def service(dialogue: Record) -> str:
  """A dialogue of a user and a system; each turn begins with its role."""
  marks = {'usr': '用户：', 'sys': '系统：'}
  return '\n'.join(marks[t['role']] + t['text'] for t in dialogue['turns'])


def persona(record: Record) -> str:
  """The role that a model should play, then the instruction."""
  return record['act'] + '\n' + record['prompt'].strip()


registry.add_text_task('kdconv', Corpus('kdconv'), chat)
registry.add_text_task('crosswoz', Corpus('crosswoz'), service)
registry.add_text_task('chatterbot', Corpus('chatterbot'), exchange)
registry.add_text_task('persona_prompts', Corpus('persona_prompts'), persona)
