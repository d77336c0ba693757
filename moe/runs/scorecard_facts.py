"""Loss, cost and licences in a scorecard, and contamination of its sets."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moe.data.store import Store
from moe.evaluate import (
  benchmarks,
  comparison,
  compression,
  contamination,
  documents,
  ngram,
  score,
)
from moe.runs import scorecard_scores, scoring
from moe.runs.results import BASELINES
from moe.runs.run import TrainedRun
from moe.runs.scorecard_scores import Asked
from moe.scale import topology
from moe.train import record_log

# Planned chip-hours assume this chip at this share of its peak FLOP/s. Planned
# energy assumes this power in watts, the limit of the H100 SXM in NVIDIA's data
# sheet.
CHIP, SHARE_OF_PEAK, WATTS = 'h100', 0.4, 700
WEIGHTS_LICENCE = 'Apache-2.0'
_BUILTIN = '/tasks/corpora/'
_RECORDS_AT_ONCE = 1000


def train_stores(
  trained: TrainedRun, prepare_stores: Callable[..., str]
) -> list[Store]:
  """The token stores of the training split of a run."""
  return scoring.task_stores(
    trained, trained.run.data.train, 'train', prepare_stores
  )


def texts_of(
  trained: TrainedRun, stores: Sequence[Store], max_chars: int
) -> Iterator[str]:
  """Yields the first texts of each store, about `max_chars` characters in all.

  The same share of each store's records is read. If a record has inputs, they
  are a part of its text, but their characters do not count.
  """
  total = sum(store.manifest['counts']['chars'] for store in stores)
  share = min(1.0, max_chars / max(total, 1))
  for store in stores:
    size = round(share * store.lengths.size)
    for start in range(0, size, _RECORDS_AT_ONCE):
      indices = range(start, min(size, start + _RECORDS_AT_ONCE))
      for record in store.read(indices):
        yield documents.record_text(trained.vocabulary, trained.ids, record)


def loss_per_character(
  trained: TrainedRun,
  asked: Asked,
  prepare_stores: Callable[..., str],
  train_texts: Sequence[str],
) -> dict[str, Any]:
  """Bits per character of held-out text, by the model and by baselines.

  The text is the validation split of the run's first evaluation task, cut to
  `Suite.items` documents. The baselines are compressors, and n-grams counted on
  `train_texts`. They score the same documents as the model, end marks included.
  There are none if a part of the documents is given or is not text.
  """
  task = trained.run.data.evaluation[0]
  stores = scoring.task_stores(trained, task, 'validation', prepare_stores)
  held_out = [
    record
    for store in stores
    for record in store.read(range(store.lengths.size))
  ]
  held_out = scorecard_scores.cut(held_out, asked.suite.items)
  scored = [
    documents.record_document(trained.vocabulary, trained.ids, record)
    for record in held_out
  ]
  nats = scorecard_scores.nats_of_sides(trained, {'': scored})['']
  sizes = np.array([document.chars for document in scored])
  model = comparison.of_documents(score.OURS, nats, sizes, asked.command)
  entry = {
    'task': task,
    'scores': [
      model.as_json(),
      comparison.of_documents(
        score.OURS,
        nats,
        np.array([document.bytes for document in scored]),
        asked.command,
        score.BITS_PER_BYTE,
      ).as_json(),
    ],
    'nats': [round(float(x), 4) for x in nats],
    'chars': sizes.tolist(),
    'train_chars': sum(map(len, train_texts)),
  }
  has_given = any(d.weights is not None and not d.weights.all() for d in scored)
  if has_given or not trained.ids.is_text:
    entry['no_baselines'] = (
      'a part of the documents is given or is not text, which n-grams and'
      ' compressors do not know'
    )
    return entry
  texts = [
    documents.record_text(trained.vocabulary, trained.ids, record)
    for record in held_out
  ]
  baselines = _baselines(texts, train_texts, asked.command)
  entry['scores'] += [one.as_json() for one in baselines]
  return entry


def _baselines(
  texts: Sequence[str], train_texts: Sequence[str], command: str
) -> list[score.Score]:
  """Bits per character of n-grams and of compressors."""
  chars = np.array([len(text) for text in texts])
  found = [
    comparison.of_documents(
      f'{name}, characters',
      math.log(2) * ngram.document_bits(train_texts, texts, order),
      chars,
      command,
    )
    for name, order in BASELINES.items()
  ]
  # A compressor reads all documents as one text, so there is no interval.
  return found + [
    score.Score(name, value, n=len(texts), command=command)
    for name, value in compression.compressed_bits(texts, train_texts).items()
  ]


def cost_of(workdir: str, step: int) -> dict[str, Any]:
  """Parameters, FLOPs, tokens and time of a run, read from its files."""
  folder = pathlib.Path(workdir)
  facts = {}
  if (folder / 'run.json').is_file():
    facts = json.loads((folder / 'run.json').read_text(encoding='utf-8'))
  records = [r for r in record_log.read(folder / 'log.jsonl')]
  record = next((r for r in reversed(records) if r['step'] <= step), {})
  tokens = record.get('tokens')
  found = {
    'parameters, total': facts.get('params_total'),
    'parameters, active per token': facts.get('params_active'),
    'FLOPs per token, forward': facts.get('flops_per_token_forward'),
    'FLOPs per token, optimizer': facts.get('flops_per_token_optimizer'),
    'training steps': step,
    'training tokens': tokens,
    'hours of training, measured': _hours(record.get('time', {})),
  }
  if tokens and facts.get('flops_per_token_train'):
    # Runs of earlier versions have no record of the optimizer's FLOPs. Their
    # optimizers had almost none.
    optimizer = facts.get('flops_per_token_optimizer', 0)
    flops = tokens * (facts['flops_per_token_train'] + optimizer)
    peak = topology.CHIPS[CHIP].peak['bfloat16']
    hours = flops / (SHARE_OF_PEAK * peak) / 3600
    found |= {
      'FLOPs of training': flops,
      f'{CHIP.upper()}-hours at {SHARE_OF_PEAK:.0%} of its peak': hours,
      f'kWh of these at {WATTS} W, without cooling': hours * WATTS / 1000,
    }
  return {key: value for key, value in found.items() if value is not None}


def _hours(time: dict[str, Any]) -> float | None:
  return time['elapsed'] / 3600 if time.get('elapsed') else None


def licences(stores: Sequence[Store]) -> list[tuple[str, str]]:
  """(name, licence or source) of the weights and of every training corpus."""
  rows = [('weights', WEIGHTS_LICENCE)]
  for store in stores:
    source = store.manifest.get('source', 'unknown source')
    if _BUILTIN in source:
      source = 'built-in corpus, no rights reserved (tasks/corpora/README.md)'
    rows.append((store.manifest['task'], source))
  return rows


def add_contamination(
  entries: Sequence[dict[str, Any]], train_texts: Sequence[str]
) -> None:
  """Adds to every set the share of its items that are contaminated.

  An item is contaminated if it shares a long sequence of characters with the
  training text, see `contamination.find`. A set gets the share as
  'contaminated'. If only some of its items are contaminated, each metric gets
  'clean': its score over the other items.
  """
  asked = [entry for entry in entries if entry.get('texts')]
  texts = [text for entry in asked for text in entry['texts']]
  if not texts:
    return
  is_shared = contamination.find(texts, train_texts)
  start = 0
  for entry in asked:
    size = len(entry.pop('texts'))
    shared = is_shared[start : start + size]
    start += size
    entry['contaminated'] = float(shared.mean())
    for metric in entry.get('metrics', ()):
      if shared.any() and not shared.all():
        metric['clean'] = dataclasses.asdict(
          benchmarks.metric_score(
            metric['name'],
            np.array(metric['numerators'])[~shared],
            np.array(metric['denominators'])[~shared],
            metric['command'],
          )
        )
