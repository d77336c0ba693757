"""Dialogues, a line for each turn with its speaker's mark, and personas."""

from tasks import registry
from tasks.datasets.zh_corpora.zh_corpora import Corpus


def in_turn(turns, marks):
  """Turns as lines, the two speakers' marks in turn."""
  lines = [marks[i % 2] + turn['text'] for i, turn in enumerate(turns)]
  return '\n'.join(lines)


def chat(dialogue):
  """Two speakers of equal standing."""
  return in_turn(dialogue['turns'], ['甲：', '乙：'])


def exchange(dialogue):
  """A question and its answer, or more."""
  return in_turn(dialogue['turns'], ['問：', '答：'])


def service(dialogue):
  """A user and a system, each turn by its speaker."""
  marks = {'usr': '用户：', 'sys': '系统：'}
  return '\n'.join(marks[t['role']] + t['text'] for t in dialogue['turns'])


def persona(record):
  """What to play, then the instruction."""
  return record['act'] + '\n' + record['prompt'].strip()


registry.add_text_task('kdconv', Corpus('kdconv'), chat)
registry.add_text_task('crosswoz', Corpus('crosswoz'), service)
registry.add_text_task('chatterbot', Corpus('chatterbot'), exchange)
registry.add_text_task('persona_prompts', Corpus('persona_prompts'), persona)
