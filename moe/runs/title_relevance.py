"""Measures whether poems that `reranking` puts first fit their titles better.

The model writes several poems for each held-out title. A judge looks for the
title of each poem among 16 titles. The judge only counts characters in the
training poems and uses no model. Two shares of found titles are compared: for
the poem that `reranking` puts first, and for all poems.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from moe.data.text_file import read_json_lines
from moe.evaluate import benchmarks, relevance
from moe.runs import reranking, scorecard_poems
from moe.runs.run import TrainedRun
from moe.runs.scorecard_scores import Asked

TRAIN_FILE = 'text/poems_shi_train.jsonl.xz'
# Largest number of titles, and number of poems for each title.
NUM_TITLES, NUM_POEMS = 256, 16


def measure(trained: TrainedRun, asked: Asked) -> dict[str, Any]:
  """Measures a run; the result has scores with intervals, see `scores_of`.

  Raises:
    ValueError: if a file is missing.
  """
  folder = asked.data_directory
  for file in (scorecard_poems.FILE, TRAIN_FILE):
    if not (folder / file).is_file():
      raise ValueError(f'{file} is missing below {folder}.')
  titles = scorecard_poems.held_out_titles(folder, NUM_TITLES)
  if len(titles) % relevance.GROUP == 1:
    titles.pop()  # It would be alone in its group.
  repeated = [title for title in titles for _ in range(NUM_POEMS)]
  poems = scorecard_poems.written(trained, repeated)
  nats = reranking.prompt_nats(trained, repeated, poems)
  judge = relevance.TitleJudge(titles, _train_pairs(asked))
  starts = range(0, len(poems), NUM_POEMS)
  is_matched = relevance.matched_shares(
    judge, titles, [poems[start : start + NUM_POEMS] for start in starts]
  )
  scores = scores_of(is_matched, nats.reshape(is_matched.shape), asked.command)
  return {
    'scores': scores,
    'titles': len(titles),
    'poems': NUM_POEMS,
    'group': relevance.GROUP,
  }


def scores_of(
  is_matched: np.ndarray, nats: np.ndarray, command: str
) -> list[dict[str, Any]]:
  """Scores of all poems, of the best-ranked poem of each title, and the gain.

  Args:
    is_matched: whether the judge finds the title of a poem, bool [titles,
      poems].
    nats: -log p(title | poem), [titles, poems].
    command: the command that gives the same numbers again.
  """
  best = nats.argmin(axis=1)[:, None]
  ranked = np.take_along_axis(is_matched, best, axis=1)[:, 0].astype(float)
  unranked = is_matched.mean(axis=1)
  rows = {
    'unranked': unranked,
    'ranked': ranked,
    'gain of ranking': ranked - unranked,
  }
  return [
    benchmarks.metric_score(
      name, values, np.ones(len(values)), command
    ).as_json()
    for name, values in rows.items()
  ]


def _train_pairs(asked: Asked) -> Iterator[tuple[str, str]]:
  for row in read_json_lines(asked.data_directory / TRAIN_FILE):
    yield row['title'] or '', ''.join(row['paragraphs'])
