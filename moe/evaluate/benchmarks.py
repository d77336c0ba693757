"""Benchmarks that are scored by likelihood: LAMBADA, Winograd sets, XCOPA.

A request has the characters that lm-evaluation-harness 0.4.13 gives it in the
task with the same name; the exception is the possessive 's, see `read_wsc273`.
A continuation begins with a space, in Chinese too, and an empty line follows
each solved example. `PROTOCOLS` says for each benchmark what the model is
asked, and how our data files differ from those of the harness.

Sources: LAMBADA, Paperno et al. 2016, https://arxiv.org/abs/1606.06031, in the
text of Radford et al. 2019; WSC273, Levesque et al. 2012, with partial scoring,
Trinh and Le 2018, https://arxiv.org/abs/1806.02847; WinoGrande, Sakaguchi et
al. 2019, https://arxiv.org/abs/1907.10641; XCOPA, Ponti et al. 2020,
https://arxiv.org/abs/2005.00333; XWinograd, Tikhonov and Ryabinin 2021,
https://arxiv.org/abs/2106.12066.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe.evaluate import comparison, score
from moe.evaluate.choices import Answer, Request

HARNESS = '0.4.13'
TARGET_DELIMITER = ' '
SHOT_DELIMITER = '\n\n'
SHOTS_SEED = 1234

# Units of the metrics for which a lower value is better. All other metrics are
# shares; for them a higher value is better.
UNITS = {'perplexity': 'perplexity', 'bits_per_char': score.BITS_PER_CHAR}

Row = dict[str, Any]


class Item(NamedTuple):
  """One question.

  Attributes:
    requests: one request for each choice; a single one if there is no choice.
    choices: the texts of the choices. The metrics 'acc_norm' and 'acc_bytes'
      divide the log-likelihood of a choice by the length of its text.
    gold: index of the right choice.
    group: name of a group of items with nearly the same text. An item is never
      a solved example for another item of its group.
    solved: the text of the question with its answer, for use as a solved
      example.
  """

  requests: tuple[Request, ...]
  choices: tuple[str, ...]
  gold: int
  group: str
  solved: str


class Benchmark(NamedTuple):
  """A set of questions.

  Attributes:
    name: name of the task in the harness.
    file: file of its rows, relative to the folder of shared data.
    read: makes an item from a row.
    metrics: names of its scores, see `item_values`.
    guess: accuracy of random guessing.
    text: gives the text of a row. We look for this text in the training data,
      to find contamination.
    licence: licence of the data.
  """

  name: str
  file: str
  read: Callable[[Row], Item]
  metrics: tuple[str, ...]
  guess: float
  text: Callable[[Row], str]
  licence: str


def read_lambada(row: Row) -> Item:
  """Makes an item that asks for the last word of a text."""
  context, _, word = row['text'].rpartition(' ')
  target = f' {word}'
  return Item(
    (Request(context, target),), (word,), 0, row['id'],
    context + TARGET_DELIMITER + target,
  )  # fmt: skip


def _partial(
  before: str, options: Sequence[str], after: str, gold: int, group: str
) -> Item:
  """Makes an item for partial scoring, with a request for each option.

  The context of a request is the sentence up to and including the option. The
  continuation is the rest of the sentence.
  """
  contexts = [before + option for option in options]
  rest = TARGET_DELIMITER + after
  return Item(
    tuple(Request(context, rest) for context in contexts),
    tuple(contexts),
    gold,
    group,
    contexts[gold] + rest,
  )


def read_winogrande(row: Row) -> Item:
  """Makes an item with a request for each option, which fills the blank."""
  before, _, after = row['sentence'].partition('_')
  options = row['option1'], row['option2']
  # WinoGrande has pairs of sentences that differ in one word and have the same
  # options.
  group = '|'.join(sorted(options))
  return _partial(before, options, after.strip(), int(row['answer']) - 1, group)


_CAPITALISED = {
  'A', 'An', 'The', 'She', 'He', 'It', 'They', 'My', 'His', 'Her', 'Their',
}  # fmt: skip


def read_wsc273(row: Row) -> Item:
  """Makes an item whose requests replace the pronoun by each candidate.

  An article or a pronoun at the start of a candidate gets a small letter,
  except after a full stop. The harness also writes 's after a candidate that
  replaces a possessive pronoun. Our rows do not say which pronoun was replaced,
  so we never write 's.
  """
  sentence = row['sentence'].replace('  ', ' ')
  before, _, after = sentence.partition('[MASK]')
  options = []
  for option in row['candidates']:
    first = option.split()[0]
    if before[-2:-1] != '.' and first in _CAPITALISED:
      option = option.replace(first, first.lower())
    options.append(option)
  return _partial(before, options, after, row['label'], str(row['schema']))


def read_xwinograd(row: Row) -> Item:
  """Makes an item whose requests replace the pronoun by each candidate."""
  before, _, after = row['text'].rpartition(row['pronoun'])
  options = [name for name, _ in row['candidates']]
  gold = [is_right for _, is_right in row['candidates']].index(True)
  group = '|'.join(sorted(options))
  return _partial(before, options, after.strip(), gold, group)


_CONNECTORS = {'cause': '因为', 'effect': '所以'}


def read_xcopa(row: Row) -> Item:
  """Makes an item that asks which of two texts is the cause or effect."""
  connector = _CONNECTORS[row['question']]
  context = f'{row["premise"].strip()[:-1]} {connector}'
  lower = lambda text: text[0].lower() + text[1:]
  options = lower(row['choice1']), lower(row['choice2'])
  gold = int(row['label'])
  return Item(
    tuple(Request(context, TARGET_DELIMITER + option) for option in options),
    options,
    gold,
    row['premise'],
    context + TARGET_DELIMITER + options[gold],
  )


BENCHMARKS = (
  Benchmark(
    'lambada_openai',
    'eval/lambada_test_openai.jsonl.xz',
    read_lambada,
    ('acc', 'perplexity', 'bits_per_char'),
    0.0,
    lambda row: row['text'],
    'CC BY 4.0 (LAMBADA), MIT (this variant)',
  ),
  Benchmark(
    'wsc273',
    'eval/wsc273.jsonl.gz',
    read_wsc273,
    ('acc',),
    0.5,
    lambda row: row['sentence'].replace('[MASK]', ''),
    'CC BY 4.0',
  ),
  Benchmark(
    'winogrande',
    'eval/winogrande_dev.jsonl.gz',
    read_winogrande,
    ('acc',),
    0.5,
    lambda row: row['sentence'].replace('_', ''),
    'CC BY',
  ),
  Benchmark(
    'xcopa_zh',
    'eval/xcopa_zh.jsonl.gz',
    read_xcopa,
    ('acc', 'acc_norm', 'acc_bytes'),
    0.5,
    lambda row: row['premise'] + row[f'choice{row["label"] + 1}'],
    'CC BY 4.0',
  ),
  Benchmark(
    'xwinograd_zh',
    'eval/xwinograd_zh.jsonl',
    read_xwinograd,
    ('acc',),
    0.5,
    lambda row: row['text'],
    'Apache-2.0',
  ),
)
PROTOCOLS = {
  'lambada_openai': 'The last word after the text before it. acc: greedy'
  ' decoding writes it. perplexity: exp of the mean nats of a word.'
  ' bits_per_char: all bits over all characters of the words and the spaces'
  ' before them, which no vocabulary changes.',
  'wsc273': 'Partial scoring: the likelihood of the rest of the sentence after'
  ' either candidate. The file has 233 of the 273 sentences and does not name'
  " the pronouns, so no candidate gets a possessive 's.",
  'winogrande': 'Partial scoring, as WSC273. The file has 1,076 of the 1,267'
  ' sentences of the development side.',
  'xcopa_zh': 'The choice whose likelihood is higher; acc_norm divides it by'
  ' characters, acc_bytes by bytes. The file has 522 of the 600 items of both'
  ' sides.',
  'xwinograd_zh': 'Partial scoring, as WSC273. The file has 16 sentences: no'
  ' claim rests on them.',
}


def with_shots(items: Sequence[Item], num_shots: int) -> list[Item]:
  """Puts solved examples from the same set before the context of each item.

  Our sets have no training split. So the examples of an item are other items of
  its set that are not in its group. They are drawn with a separate seed for
  each item. The harness also takes examples from the same set if a task has a
  single split, but it draws other examples.
  """
  if not num_shots:
    return list(items)
  taught = []
  for number, item in enumerate(items):
    draw = random.Random(f'{SHOTS_SEED}/{num_shots}/{number}')
    order = draw.sample(range(len(items)), len(items))
    others = [items[i] for i in order if items[i].group != item.group]
    lesson = ''.join(
      other.solved + SHOT_DELIMITER for other in others[:num_shots]
    )
    requests = tuple(
      request._replace(context=lesson + request.context)
      for request in item.requests
    )
    taught.append(item._replace(requests=requests))
  return taught


def item_values(
  metric: str, items: Sequence[Item], answers: Sequence[Sequence[Answer]]
) -> tuple[np.ndarray, np.ndarray]:
  """(numerators, denominators) of a metric, one pair for each item.

  The metric is the sum of all numerators over the sum of all denominators.
  Perplexity is the exponential of this ratio.
  """
  if metric in ('perplexity', 'bits_per_char'):
    nats = np.array([answer.nats for (answer,) in answers])
    if metric == 'perplexity':
      return nats, np.ones(len(items))
    sizes = [len(item.requests[0].continuation) for item in items]
    return nats / math.log(2), np.array(sizes, float)
  right = [
    _is_right(metric, item, answer)
    for item, answer in zip(items, answers, strict=True)
  ]
  return np.array(right, float), np.ones(len(items))


def _is_right(metric: str, item: Item, answers: Sequence[Answer]) -> bool:
  if len(answers) == 1:
    return answers[0].is_greedy
  size = {
    'acc': lambda choice: 1,
    'acc_norm': len,
    'acc_bytes': lambda choice: len(choice.encode()),
  }[metric]
  nats = [
    answer.nats / size(choice)
    for answer, choice in zip(answers, item.choices, strict=True)
  ]
  return int(np.argmin(nats)) == item.gold


def metric_score(
  metric: str, numerators: np.ndarray, denominators: np.ndarray, command: str
) -> score.Score:
  """The score of a metric, with a bootstrap interval over items.

  Args:
    metric: name of the metric.
    numerators: one number for each item, from `item_values` or from a reading
      set.
    denominators: one number for each item.
    command: the command that gives the same number again.
  """
  nats = np.asarray(numerators, np.float64) * math.log(2)
  unit = UNITS.get(metric, 'share')
  found = comparison.of_documents(metric, nats, denominators, command, unit)
  if metric == 'perplexity':
    ends = (found.value, found.low, found.high)
    value, low, high = (None if x is None else math.exp(x) for x in ends)
    return dataclasses.replace(found, value=value, low=low, high=high)
  return dataclasses.replace(found, is_higher_better=metric not in UNITS)
