"""Scores a trained model on benchmarks, reading sets and translations."""

import math
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moe.data.text_file import read_json_lines
from moe.evaluate import aligned, benchmarks, choices, documents, likelihood
from moe.evaluate import reading as reading_lib
from moe.evaluate.likelihood import Context, Document
from moe.infer import forms
from moe.infer.sampling import Sampling
from moe.runs import scoring, writing
from moe.runs.run import TrainedRun
from moe.train.display import make_display

# Number of prompts that are decoded in one batch.
_PROMPTS_PER_BATCH = 32
_CUT_SEED = 0


class Suite(NamedTuple):
  """Limits for the parts of a scorecard; None means no limit.

  Attributes:
    name: name of the suite.
    items: largest number of items of a benchmark.
    questions: largest number of questions of a reading set.
    sentences: largest number of sentences of an aligned set.
    answer_tokens: largest number of tokens of a generated answer.
    train_chars: largest number of characters of training text. This text is
      searched for contamination, and n-grams are counted on it.
    poems: number of poems that the model writes in each form; 0 leaves out the
      poet's card.
  """

  name: str
  items: int | None
  questions: int
  sentences: int | None
  answer_tokens: int
  train_chars: int
  poems: int


SUITES = {
  suite.name: suite
  for suite in (
    Suite('quick', 150, 16, 60, 24, 4_000_000, 0),
    Suite('full', None, 200, None, 48, 20_000_000, 32),
  )
}


class Asked(NamedTuple):
  """Settings of the measurement of a scorecard.

  Attributes:
    suite: how much of each set is measured.
    num_shots: number of solved examples before each item of a benchmark.
    data_directory: folder of shared data.
    command: the command that measures the same scorecard again.
  """

  suite: Suite
  num_shots: int
  data_directory: pathlib.Path
  command: str


def cut(rows: Sequence[Any], size: int | None) -> list[Any]:
  """Draws at most `size` rows at random, the same ones every time."""
  if size is None or len(rows) <= size:
    return list(rows)
  drawn = random.Random(_CUT_SEED).sample(range(len(rows)), size)
  return [rows[i] for i in sorted(drawn)]


def context_of(trained: TrainedRun) -> Context:
  """Sizes of windows and batches; devices get equal numbers of rows."""
  length = trained.run.data.sequence_length
  parts = trained.row_parts
  num_rows = max(1, scoring.TOKENS_PER_BATCH // length)
  return Context(
    length, max(1, length // 2), math.ceil(num_rows / parts) * parts
  )


def progress(what: str) -> Callable[[int, int], None]:
  """Makes a function (done, total) that shows a progress bar."""
  display = make_display()

  def on_progress(done: int, total: int) -> None:
    bar = '█' * (20 * done // total)
    display.show(f'{what} {bar:░<20} {done:,} of {total:,}')
    if done >= total:
      display.close()

  return on_progress


def score_benchmarks(trained: TrainedRun, asked: Asked) -> list[dict[str, Any]]:
  """Scores all benchmarks; the requests of all items share batches.

  If the file of a benchmark is missing, its entry has 'skipped' with the
  reason.
  """
  entries, sets, requests = [], [], []
  for benchmark in benchmarks.BENCHMARKS:
    entry = {
      'name': benchmark.name,
      'kind': 'likelihood',
      'shots': asked.num_shots,
      'guess': benchmark.guess,
      'licence': benchmark.licence,
      'protocol': benchmarks.PROTOCOLS[benchmark.name],
    }
    entries.append(entry)
    rows = _rows(asked, benchmark.file, entry)
    if rows is None:
      continue
    # Solved examples are drawn from the whole set, even if the suite measures
    # only a part of it.
    items = benchmarks.with_shots(
      [benchmark.read(row) for row in rows], asked.num_shots
    )
    kept = cut(range(len(rows)), asked.suite.items)
    items = [items[i] for i in kept]
    entry['texts'] = [benchmark.text(rows[i]) for i in kept]
    sets.append((benchmark, entry, items))
    requests += [request for item in items for request in item.requests]
  asked_documents = [
    choices.request_document(trained.vocabulary, request)
    for request in requests
  ]
  with jax.set_mesh(trained.mesh):
    answers = iter(
      choices.answer_requests(
        trained.functional,
        trained.params,
        trained.state,
        asked_documents,
        context_of(trained),
        progress('benchmarks'),
      )
    )
  for benchmark, entry, items in sets:
    of_items = [[next(answers) for _ in item.requests] for item in items]
    entry['n'] = len(items)
    entry['metrics'] = [
      metric_entry(
        metric,
        *benchmarks.item_values(metric, items, of_items),
        asked.command,
        benchmark.guess if metric.startswith('acc') else None,
      )
      for metric in benchmark.metrics
    ]
  return entries


def metric_entry(
  metric: str,
  numerators: np.ndarray,
  denominators: np.ndarray,
  command: str,
  guess: float | None,
) -> dict[str, Any]:
  """A score with the values of its items, for `scorecard.differences`."""
  found = benchmarks.metric_score(metric, numerators, denominators, command)
  return found.as_json() | {
    'guess': guess,
    'numerators': [round(float(x), 6) for x in numerators],
    'denominators': [float(x) for x in denominators],
  }


def _rows(asked: Asked, file: str, entry: dict) -> list[dict] | None:
  """Reads the rows of a set.

  If the file is missing, the result is None, and the entry gets the reason.
  """
  path = asked.data_directory / file
  if not path.is_file():
    entry['skipped'] = (
      f'{file} is missing below {asked.data_directory}: set $WUDAO_DATA or'
      ' --data to the folder that has it.'
    )
    return None
  return read_json_lines(path)


def score_readings(trained: TrainedRun, asked: Asked) -> list[dict[str, Any]]:
  """Scores reading sets: exact match and F1 of the model's answers."""
  entries = []
  write = None
  for reading in reading_lib.READINGS:
    limit = min(
      asked.suite.answer_tokens, trained.run.data.sequence_length // 4
    )
    entry = {
      'name': reading.name,
      'kind': 'generation',
      'shots': 0,
      'guess': 0.0,
      'licence': reading.licence,
      'protocol': f'{reading_lib.PROTOCOL} Tokens: {limit}.',
    }
    entries.append(entry)
    try:
      writing.check_causal(trained.run, trained.workdir)
    except ValueError as error:
      entry['skipped'] = str(error)
      continue
    rows = _rows(asked, reading.file, entry)
    if rows is None:
      continue
    questions = cut(
      [question for row in rows for question in reading.questions(row)],
      asked.suite.questions,
    )
    write = write or writing.writer(trained, Sampling(temperature=0))
    given = list(
      short_answers(
        trained,
        write,
        [question.prompt for question in questions],
        limit,
        progress(reading.name),
      )
    )
    entry['n'] = len(questions)
    entry['texts'] = [question.text for question in questions]
    entry['metrics'] = []
    for metric, score_fn in (('exact', reading.exact), ('f1', reading.f1)):
      values = [
        reading_lib.best(score_fn, question.answers, answer)
        for question, answer in zip(questions, given, strict=True)
      ]
      entry['metrics'].append(
        metric_entry(
          metric, np.array(values), np.ones(len(values)), asked.command, 0.0
        )
      )
  return entries


def short_answers(
  trained: TrainedRun,
  write: Callable[..., list[list[int]]],
  prompts: Sequence[str],
  limit: int,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
  stops: Sequence[str] = (reading_lib.STOP,),
) -> Iterator[str]:
  """Yields the model's text after each prompt, up to the first stop.

  Args:
    trained: the trained run.
    write: a function that `writing.writer` made.
    prompts: texts. If a prompt is too long, its first tokens are cut off.
    limit: the largest number of tokens to write.
    on_progress: called with (prompts done, all prompts) after each batch.
    stops: texts that end an answer. They are not a part of the answer.
  """
  vocabulary = trained.vocabulary
  table = forms.free_table(forms.pieces_of(vocabulary), vocabulary.eos)
  room = trained.run.data.sequence_length - limit
  for start in range(0, len(prompts), _PROMPTS_PER_BATCH):
    ids = [
      vocabulary.encode(prompt)[-room:]
      for prompt in prompts[start : start + _PROMPTS_PER_BATCH]
    ]
    for written in write(ids, [table] * len(ids), limit, 0):
      text = vocabulary.decode(written)
      for stop in stops:
        text = text.split(stop)[0]
      yield text
    on_progress(start + len(ids), len(prompts))


def score_languages(trained: TrainedRun, asked: Asked) -> list[dict[str, Any]]:
  """Scores each language of each aligned set in bits per English character."""
  entries = []
  for aligned_set in aligned.SETS:
    entry = {'name': aligned_set.name, 'licence': aligned_set.licence}
    entries.append(entry)
    rows = _rows(asked, aligned_set.file, entry)
    if rows is None:
      continue
    rows = cut(rows, asked.suite.sentences)
    english = [row[aligned_set.fields[aligned.ENGLISH]] for row in rows]
    chars = np.array([len(text) for text in english], float)
    texts = {
      language: [row[field] for row in rows]
      for language, field in aligned_set.fields.items()
    }
    try:
      sides = {
        language: documents.text_documents(trained.vocabulary, of_language)
        for language, of_language in texts.items()
      }
    except ValueError as error:
      entry['skipped'] = str(error)
      continue
    nats = nats_of_sides(trained, sides, progress(aligned_set.name))
    entry['n'] = len(rows)
    entry['texts'] = english
    entry['languages'] = [
      _language_entry(language, nats, chars, asked.command)
      for language in aligned_set.fields
    ]
  return entries


def nats_of_sides(
  trained: TrainedRun,
  sides: dict[str, list[Document]],
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
  """Scores lists of documents; returns name of the list -> nats [documents].

  The lists share batches.
  """
  joined = [document for side in sides.values() for document in side]
  with jax.set_mesh(trained.mesh):
    nats = likelihood.score_documents(
      trained.functional,
      trained.params,
      trained.state,
      joined,
      context_of(trained),
      on_progress,
    )
  ends = np.cumsum([len(side) for side in sides.values()])[:-1]
  return dict(zip(sides, np.split(nats, ends), strict=True))


def _language_entry(
  language: str,
  nats: dict[str, np.ndarray],
  english_chars: np.ndarray,
  command: str,
) -> dict[str, Any]:
  score = aligned.language_score(
    language, nats[language], english_chars, command
  )
  entry = {'score': score.as_json()}
  if language != aligned.ENGLISH:
    entry['difference'] = aligned.difference(
      language, nats[language], nats[aligned.ENGLISH], english_chars, command
    ).as_json()
  entry['nats'] = [round(float(x), 4) for x in nats[language]]
  entry['chars'] = english_chars.tolist()
  return entry
