"""Measures, stores and compares scorecards: all scores of a checkpoint."""

import datetime
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moe import atomic_files
from moe.checkpoint import listing
from moe.data.store import file_sha256
from moe.evaluate import aligned, benchmarks, comparison, reading, score
from moe.runs import (
  reranking,
  scorecard_facts,
  scorecard_poems,
  scorecard_scores,
  title_relevance,
  trained,
)
from moe.runs.run import TrainedRun
from moe.runs.scorecard_scores import Asked

_logger = logging.getLogger(__name__)

# Increase this number if the meaning of a value in a stored scorecard changes.
FORMAT = 4
FOLDER = 'scorecards'

Card = dict[str, Any]


def scorecard(
  checkpoint: str,
  asked: Asked,
  load_run: Callable[[str], TrainedRun],
  prepare_stores: Callable[..., str],
) -> Card:
  """Reads the scorecard of a checkpoint from a file, or measures it.

  The folder `scorecards` of the run has a file for each step, suite and number
  of shots. If `FORMAT` or a data file has changed since, the scorecard is
  measured again.

  Args:
    checkpoint: directory of a run, of its checkpoints, or of a step.
    asked: the suite and the settings of the measurement.
    load_run: reads a trained run from a directory.
    prepare_stores: makes missing token stores, with the arguments and the
      result of `launch.token_stores.prepare`.

  Raises:
    ValueError: if the checkpoint is missing or damaged.
  """
  files = trained.find(checkpoint)
  step = files.step
  if step is None:
    step = listing.best_step(files.steps_dir)
  if step is None:
    step = listing.steps(files.steps_dir)[-1]
  path = pathlib.Path(files.workdir) / FOLDER
  path /= f'{step}_{asked.suite.name}_{asked.num_shots}shot.json'
  digest = _data_digest(asked.data_directory)
  kept = _kept(path)
  if kept and (kept['format'], kept['data']) == (FORMAT, digest):
    _logger.info(f'read from {path}')
    return kept
  begin = time.monotonic()
  card = _measure(
    load_run(os.path.join(files.steps_dir, str(step))), asked, prepare_stores
  )
  card |= {
    'format': FORMAT,
    'data': digest,
    'seconds': round(time.monotonic() - begin, 1),
  }
  path.parent.mkdir(exist_ok=True)
  text = json.dumps(card, ensure_ascii=False)
  atomic_files.write_file(str(path), text.encode())
  return card


def _kept(path: pathlib.Path) -> Card | None:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None  # The file is missing or incomplete, so we measure again.


def stored(workdir: str, step: int) -> Card | None:
  """The stored 0-shot card of a step: suite full, else quick, else None."""
  for suite in ('full', 'quick'):
    path = pathlib.Path(workdir) / FOLDER / f'{step}_{suite}_0shot.json'
    found = _kept(path)
    if found and found['format'] == FORMAT:
      return found
  return None


def _data_digest(directory: pathlib.Path) -> dict[str, str]:
  """Path -> SHA-256 of each set's file; '' if the file is missing.

  The sets are benchmarks, reading sets, aligned sets and verse.
  """
  sets = (*benchmarks.BENCHMARKS, *reading.READINGS, *aligned.SETS)
  files = {one.file for one in sets} | set(scorecard_poems.FILES)
  found = {}
  for file in sorted(files):
    path = directory / file
    found[file] = file_sha256(str(path)) if path.is_file() else ''
  return found


def _measure(
  run: TrainedRun, asked: Asked, prepare_stores: Callable[..., str]
) -> Card:
  """Measures all parts; a part that cannot be measured has a reason instead."""
  _logger.info(f'{run.workdir}, step {run.step}, suite {asked.suite.name}')
  card = {
    'checkpoint': run.workdir,
    'step': run.step,
    'suite': asked.suite.name,
    'shots': asked.num_shots,
    'harness': benchmarks.HARNESS,
    'command': asked.command,
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'sequence_length': run.run.data.sequence_length,
    'benchmarks': scorecard_scores.score_benchmarks(run, asked),
    'readings': scorecard_scores.score_readings(run, asked),
    'languages': scorecard_scores.score_languages(run, asked),
    'cost': scorecard_facts.cost_of(run.workdir, run.step),
  }
  sets = [*card['benchmarks'], *card['readings'], *card['languages']]
  try:
    stores = scorecard_facts.train_stores(run, prepare_stores)
    texts = list(scorecard_facts.texts_of(run, stores, asked.suite.train_chars))
    card['loss'] = scorecard_facts.loss_per_character(
      run, asked, prepare_stores, texts
    )
    card['licences'] = scorecard_facts.licences(stores)
    if asked.suite.poems:
      tasks = [store.manifest['task'] for store in stores]
      card['poet'] = _poet(run, asked, texts, tasks)
    scorecard_facts.add_contamination(sets, texts)
    card['searched'] = {
      'chars': sum(map(len, texts)),
      'documents': len(texts),
      'of': sum(store.lengths.size for store in stores),
    }
  except (ValueError, OSError, SystemExit) as error:
    reason = f'the token stores of the run cannot be read: {error}'
    card |= {'loss': {'skipped': reason}, 'searched': None}
    card['licences'] = scorecard_facts.licences([])
  for entry in sets:
    entry.pop('texts', None)
  return card


def _poet(
  run: TrainedRun,
  asked: Asked,
  train_texts: list[str],
  tasks: Sequence[str],
) -> dict[str, Any]:
  """Measures poems, and relevance to titles if a task predicts the titles."""
  try:
    found = scorecard_poems.score_poems(run, asked, train_texts)
    if any(task.endswith(reranking.INVERSE) for task in tasks):
      found['relevance'] = title_relevance.measure(run, asked)
    return found
  except ValueError as error:
    return {'skipped': str(error)}


def differences(card: Card, other: Card, command: str) -> list[dict[str, Any]]:
  """Subtracts the scores of `other` from the scores of `card`.

  Two scores are compared only if the denominators of their items are equal. The
  intervals come from a paired bootstrap over items. For perplexities, the
  logarithms are subtracted.

  Args:
    card: a scorecard.
    other: another scorecard, whose scores are subtracted.
    command: the command that gives the same numbers again.
  """
  theirs = {name: values for name, *values in _paired(other)}
  found = []
  for name, unit, numerators, denominators in _paired(card):
    if name not in theirs or theirs[name][2] != denominators:
      continue
    nats, other_nats = (
      np.array(x, float) * math.log(2) for x in (numerators, theirs[name][1])
    )
    sizes = np.array(denominators, float)
    found.append(
      score.Score(
        name,
        *comparison.compare(nats, other_nats, sizes, 1000)[:3],
        n=len(sizes),
        command=command,
        unit=unit,
        is_higher_better='share' in unit,
      ).as_json()
    )
  return found


def _paired(card: Card) -> Iterator[tuple[str, str, list, list]]:
  """Yields (name, unit, numerators, denominators) of scores, without verse.

  There is one numerator and one denominator for each item.
  """
  for entry in (*card['benchmarks'], *card['readings']):
    for metric in entry.get('metrics', ()):
      name, unit = metric['name'], metric['unit']
      if name == 'perplexity':
        name, unit = 'log perplexity', 'nats'
      yield (
        f'{entry["name"]}: {name}',
        unit,
        metric['numerators'],
        metric['denominators'],
      )
  in_bits = lambda nats: [x / math.log(2) for x in nats]
  for entry in card['languages']:
    for side in entry.get('languages', ()):
      name = f'{entry["name"]}: {side["score"]["name"]}'
      unit = side['score']['unit']
      yield name, unit, in_bits(side['nats']), side['chars']
  loss = card['loss']
  if 'nats' in loss:
    name, unit = f'{loss["task"]}: held-out loss', score.BITS_PER_CHAR
    yield name, unit, in_bits(loss['nats']), loss['chars']


def without_items(card: Card) -> Card:
  """A copy of a card without the values of single items, for printing."""
  hidden = ('numerators', 'denominators', 'nats', 'chars')

  def strip(value: Any) -> Any:
    if isinstance(value, dict):
      return {
        k: strip(v)
        for k, v in value.items()
        if not (k in hidden and isinstance(v, list))
      }
    if isinstance(value, list):
      return [strip(entry) for entry in value]
    return value

  return strip(card)


def scores_of(card: Card) -> list[score.Score]:
  """All scores of a card; each name begins with the name of its set."""
  return [
    score.from_json(entries | {'name': f'{of}: {entries["name"]}'})
    for of, entries in _named_scores(card)
  ]


def _named_scores(card: Card) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (name of the set, score) of every score."""
  for entry in (*card['benchmarks'], *card['readings']):
    yield from ((entry['name'], metric) for metric in entry.get('metrics', ()))
  for entry in card['languages']:
    for side in entry.get('languages', ()):
      kinds = ('score', 'difference')
      yield from ((entry['name'], side[kind]) for kind in kinds if kind in side)
  loss, poet = card['loss'], card.get('poet', {})
  yield from ((loss['task'], one) for one in loss.get('scores', ()))
  for group in poet.get('groups', ()):
    for of_writers in group['measures'].values():
      for writer, one in zip(group['writers'], of_writers, strict=True):
        yield f'{group["name"]}, {writer}', one
  for one in poet.get('relevance', {}).get('scores', ()):
    yield 'titles matched among 16', one


def as_text(cards: list[Card], paired: list[dict[str, Any]]) -> str:
  """Text for people: scores, skipped parts, cost, and differences."""
  parts = []
  for card in cards:
    lines = [f'{card["checkpoint"]}, step {card["step"]}', '']
    lines += [score.as_table(scores_of(card)), '']
    for entry in (*card['benchmarks'], *card['readings'], *card['languages']):
      if 'skipped' in entry:
        lines.append(f'{entry["name"]} skipped: {entry["skipped"]}')
    if 'skipped' in card['loss']:
      lines.append(f'loss skipped: {card["loss"]["skipped"]}')
    if 'skipped' in card.get('poet', ()):
      lines.append(f'poems skipped: {card["poet"]["skipped"]}')
    lines += [f'{key}: {value:,.6g}' for key, value in card['cost'].items()]
    parts.append('\n'.join(lines))
  if paired:
    table = score.as_table([score.from_json(one) for one in paired])
    parts.append(f'differences, first minus second\n\n{table}')
  return '\n\n'.join(parts)
