"""Reading comprehension with generated answers: DRCD, CMRC 2018 and XQuAD.

Prompts and scores of XQuAD (Artetxe et al. 2020,
https://arxiv.org/abs/1910.11856) are those of the tasks `xquad_zh` and
`xquad_en` of lm-evaluation-harness 0.4.13. The harness has no tasks for DRCD
(Shao et al. 2018, https://arxiv.org/abs/1806.00920) and CMRC 2018 (Cui et al.
2019, https://arxiv.org/abs/1810.07366). Both get the prompt of XQuAD, in
traditional or simplified characters like the set itself. Both are scored as in
the paper on CMRC 2018.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# The answer ends at the first line break, as in the harness.
STOP = '\n'
_PROMPTS = {
  'zh_hans': '语境: {context}\n\n问题: {question}\n\n回答:',
  'zh_hant': '語境: {context}\n\n問題: {question}\n\n回答:',
  'en': 'Context: {context}\n\nQuestion: {question}\n\nAnswer:',
}


class Question(NamedTuple):
  """A question about a text.

  Attributes:
    prompt: text, question, and a word such as 'Answer:' at the end.
    answers: right answers.
    text: we look for this text in the training data, to find contamination.
  """

  prompt: str
  answers: tuple[str, ...]
  text: str


class Reading(NamedTuple):
  """A set of questions about texts.

  Attributes:
    name: name of the task in the harness; if it has none, name of the set.
    file: file of its rows, relative to the folder of shared data.
    questions: makes questions from a row.
    exact: (right answer, given answer) -> 1 or 0.
    f1: (right answer, given answer) -> number from 0 to 1.
    licence: licence of the data.
  """

  name: str
  file: str
  questions: Callable[[dict[str, Any]], list[Question]]
  exact: Callable[[str, str], float]
  f1: Callable[[str, str], float]
  licence: str


def _span_questions(script: str) -> Callable[[dict], list[Question]]:
  def questions(row: dict[str, Any]) -> list[Question]:
    return [
      Question(
        _PROMPTS[script].format(
          context=row['context'], question=qa['question']
        ),
        tuple(answer for answer, _ in qa['answers']),
        row['context'],
      )
      for qa in row['qas']
    ]

  return questions


def _xquad_questions(language: str) -> Callable[[dict], list[Question]]:
  prompt = _PROMPTS['en' if language == 'en' else 'zh_hans']

  def questions(row: dict[str, Any]) -> list[Question]:
    context = row[f'context_{language}']
    return [
      Question(
        prompt.format(context=context, question=qa[f'question_{language}']),
        (qa[f'answer_{language}'][0],),
        context,
      )
      for qa in row['qas']
    ]

  return questions


def squad_words(text: str) -> list[str]:
  """The words that SQuAD's scores compare: lower case, without articles.

  Punctuation is removed.
  """
  kept = ''.join(c for c in text.lower() if c not in string.punctuation)
  return re.sub(r'\b(a|an|the)\b', ' ', kept).split()


def squad_exact(right: str, given: str) -> float:
  """1 if both have the same words in the same order, else 0.

  Rajpurkar et al. (2016), https://arxiv.org/abs/1606.05250.
  """
  return float(squad_words(right) == squad_words(given))


def squad_f1(right: str, given: str) -> float:
  """F1 of the words that both have, regardless of their order."""
  right_words, words = squad_words(right), squad_words(given)
  if not right_words or not words:
    return float(right_words == words)
  shared = collections.Counter(right_words) & collections.Counter(words)
  return 2 * shared.total() / (len(right_words) + len(words))


def character_units(text: str) -> list[str]:
  """Splits a text into the units that CMRC's scores compare.

  A unit is a Chinese character or a word of another script. Punctuation,
  symbols and spaces are left out.
  """
  kept = ''.join(
    ' ' if unicodedata.category(c)[0] in 'PSZ' else c for c in text.lower()
  )
  return re.findall(
    '[\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]'
    '|[^\\s\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+',
    kept,
  )


def character_exact(right: str, given: str) -> float:
  """1 if both have the same `character_units`, else 0."""
  return float(character_units(right) == character_units(given))


def character_f1(right: str, given: str) -> float:
  """F1 of CMRC 2018: it counts the longest run of units that both have."""
  a, b = character_units(right), character_units(given)
  if not a or not b:
    return float(a == b)
  longest, ends = 0, [0] * (len(b) + 1)
  for unit in a:
    ends = [0] + [
      ends[j] + 1 if other == unit else 0 for j, other in enumerate(b)
    ]
    longest = max(longest, *ends)
  return 2 * longest / (len(a) + len(b))


def best(
  score: Callable[[str, str], float], answers: Sequence[str], given: str
) -> float:
  """The highest score of an answer over all right answers."""
  return max(score(right, given) for right in answers)


READINGS = (
  Reading(
    'drcd',
    'eval/drcd.jsonl.xz',
    _span_questions('zh_hant'),
    character_exact,
    character_f1,
    'CC BY-SA 3.0',
  ),
  Reading(
    'cmrc2018',
    'eval/cmrc2018.jsonl.xz',
    _span_questions('zh_hans'),
    character_exact,
    character_f1,
    'CC BY-SA 4.0',
  ),
  Reading(
    'xquad_zh',
    'eval/xquad_zh_en.jsonl.xz',
    _xquad_questions('zh'),
    squad_exact,
    squad_f1,
    'CC BY-SA 4.0',
  ),
  Reading(
    'xquad_en',
    'eval/xquad_zh_en.jsonl.xz',
    _xquad_questions('en'),
    squad_exact,
    squad_f1,
    'CC BY-SA 4.0',
  ),
)
PROTOCOL = (
  'Greedy decoding after text, question and the word "answer", until a line'
  ' break. A text that is too long loses its beginning, as in the harness. The'
  ' harness writes up to 256 tokens, we write as many as this page says.'
)
