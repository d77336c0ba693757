"""Dialogues, each turn a line with the mark of its speaker, and personas."""

from collections.abc import Sequence

from tasks import registry
from tasks.datasets.zh_corpora.corpus import Corpus
from tasks.text_files import Record


def in_turn(turns: Sequence[Record], marks: Sequence[str]) -> str:
  """Turns as lines that begin with the marks of two speakers in turn."""
  lines = [marks[i % 2] + turn['text'] for i, turn in enumerate(turns)]
  return '\n'.join(lines)


def chat(dialogue: Record) -> str:
  """Two speakers of equal standing."""
  return in_turn(dialogue['turns'], ['甲：', '乙：'])


def exchange(dialogue: Record) -> str:
  """One or more questions, each with its answer."""
  return in_turn(dialogue['turns'], ['問：', '答：'])


def service(dialogue: Record) -> str:
  """A user and a system, each turn with the mark of its speaker."""
  marks = {'usr': '用户：', 'sys': '系统：'}
  return '\n'.join(marks[t['role']] + t['text'] for t in dialogue['turns'])


def persona(record: Record) -> str:
  """The part to play, then the instruction."""
  return record['act'] + '\n' + record['prompt'].strip()


registry.add_text_task('kdconv', Corpus('kdconv'), chat)
registry.add_text_task('crosswoz', Corpus('crosswoz'), service)
registry.add_text_task('chatterbot', Corpus('chatterbot'), exchange)
registry.add_text_task('persona_prompts', Corpus('persona_prompts'), persona)
