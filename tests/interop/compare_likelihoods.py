"""Compares our likelihoods with those of lm_eval and transformers, by item.

    export HF_DATASETS_OFFLINE=1 HF_HUB_OFFLINE=1
    python -m tests.interop.compare_likelihoods --checkpoint=runs/one

The run is exported. lm-evaluation-harness scores the export with transformers
in float32, and the run itself through `launch.benchmarks.harness_model`. The
harness's own task files read the benchmark rows in $WUDAO_DATA, so no network
is needed. The table also has the accuracies of the scorecard.

Two experts can have scores that are equal up to the rounding of float32. Then a
batch of another size can choose the other expert, and the likelihood jumps. So
if two likelihoods differ too much, each program computes its own again in a
batch of one. If a program's two values differ, the likelihood counts as a tie.
Then any value of one program may agree with any value of the other.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from launch import convert
from launch.benchmarks.harness_model import Wudao
from moe.data.text_file import read_json_lines
from moe.evaluate import benchmarks
from moe.runs import scorecard_scores
from tasks import text_files

# Task -> its file in the harness.
YAML = {
  'lambada_openai': 'lambada/lambada_openai.yaml',
  'wsc273': 'wsc273/default.yaml',
  'winogrande': 'winogrande/default.yaml',
  'xcopa_zh': 'xcopa/default_zh.yaml',
}
# Two log-likelihoods that differ by at most this many nats count as equal.
MOST_NATS = 1e-3
_PRONOUN = '[MASK]'


class Compared(NamedTuple):
  """The results of one task.

  Attributes:
    task: name of the task.
    items: number of items.
    theirs: accuracy of the export in the harness.
    ours: accuracy of the run in the harness.
    card: accuracy of the run on our scorecard.
    requests: number of likelihoods that were compared.
    nats: the largest difference that `gap` gives.
    ties: number of likelihoods that differ by more than `MOST_NATS`, although
      the values of one program, in a batch and alone, differ by as much.
    differing: number of items that only one of the two models answers right.
  """

  task: str
  items: int
  theirs: float
  ours: float
  card: float
  requests: int
  nats: float
  ties: int
  differing: int

  @property
  def is_equal(self) -> bool:
    """Whether no answer differs, and no likelihood by more than `MOST_NATS`."""
    right = {
      round(x * self.items, 6) for x in (self.theirs, self.ours, self.card)
    }
    return len(right) == 1 and self.differing == 0 and self.nats <= MOST_NATS


def harness_row(task: str, row: dict[str, Any]) -> dict[str, Any]:
  """Converts a row of our files to the fields that the harness's task reads."""
  if task != 'wsc273':
    return row
  text = row['sentence'].replace('  ', ' ')
  return {
    'text': text,
    'pronoun': _PRONOUN,
    'pronoun_loc': text.index(_PRONOUN),
    'options': row['candidates'],
    'label': row['label'],
  }


def write_task(folder: pathlib.Path, task: str, rows: Sequence[dict]) -> None:
  """Writes a copy of a task of the harness that reads these rows."""
  data = folder / f'{task}.json'
  lines = (json.dumps(harness_row(task, row)) + '\n' for row in rows)
  data.write_text(''.join(lines), encoding='utf-8')
  base = f'{lm_eval.__path__[0]}/tasks/{YAML[task]}'
  (folder / f'{task}.yaml').write_text(
    f'include: {base}\ntask: local_{task}\ndataset_path: json\n'
    f'dataset_name: null\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n'
    'training_split: null\nvalidation_split: null\ntest_split: test\n'
  )


def compare(
  checkpoint: str, exported: str, data: pathlib.Path
) -> list[Compared]:
  """Compares a run with its export on every task whose file is there.

  Args:
    checkpoint: checkpoint of the run.
    exported: directory that `launch.convert to-hf` has written.
    data: folder with the files of the benchmarks.
  """
  assert lm_eval.__version__ == benchmarks.HARNESS
  ours = Wudao(checkpoint)
  asked = scorecard_scores.Asked(
    scorecard_scores.SUITES['full'], 0, data, 'the command'
  )
  cards = scorecard_scores.score_benchmarks(ours.trained, asked)
  accuracies = {
    entry['name']: entry['metrics'][0]['value']
    for entry in cards
    if 'metrics' in entry
  }
  files = {one.name: data / one.file for one in benchmarks.BENCHMARKS}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    tasks = [task for task in YAML if files[task].is_file()]
    for task in tasks:
      write_task(folder, task, read_json_lines(files[task]))
    theirs = HFLM(exported, dtype='float32', device='cpu', batch_size=64)
    found = [
      lm_eval.simple_evaluate(
        model,
        tasks=[f'local_{task}' for task in tasks],
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
        log_samples=True,
      )
      for model in (theirs, ours)
    ]
  models = theirs, ours
  return [_compared(task, found, accuracies[task], models) for task in tasks]


def alone(model: LM, context: str, continuation: str) -> float:
  """The log-likelihood of a request in a batch of one."""
  request = Instance('loglikelihood', {}, (context, continuation), 0)
  return model.loglikelihood([request], disable_tqdm=True)[0][0]


def gap(
  values: tuple[float, float], again: Callable[[int], float]
) -> tuple[float, bool]:
  """(difference of two likelihoods, whether it is a tie).

  If the likelihoods differ by more than `MOST_NATS`, both are computed again in
  a batch of one. The result is then the least difference between a value of
  program 0 and a value of program 1. The likelihoods are a tie if the batch of
  one changes either of them by more than `MOST_NATS`.

  Args:
    values: likelihoods of two programs.
    again: gives the likelihood of program 0 or 1 in a batch of one.
  """
  found = abs(values[0] - values[1])
  if found <= MOST_NATS:
    return found, False
  both = [(value, again(i)) for i, value in enumerate(values)]
  is_tie = any(abs(a - b) > MOST_NATS for a, b in both)
  return min(abs(a - b) for a in both[0] for b in both[1]), is_tie


def _compared(
  task: str, found: Sequence[dict], card: float, models: tuple[LM, LM]
) -> Compared:
  """Compares two evaluations of a task: `found` has the export's, then ours."""
  accuracies = [one['results'][f'local_{task}']['acc,none'] for one in found]
  theirs, ours = (
    sorted(one['samples'][f'local_{task}'], key=lambda s: s['doc_id'])
    for one in found
  )
  gaps = []
  for their, our in zip(theirs, ours, strict=True):
    assert their['arguments'] == our['arguments']
    for a, b, words in zip(
      their['filtered_resps'],
      our['filtered_resps'],
      our['arguments'],
      strict=True,
    ):
      again = lambda number, words=words: alone(models[number], *words)
      gaps.append(gap((float(a[0]), float(b[0])), again))
  return Compared(
    task,
    len(theirs),
    *accuracies,
    card,
    len(gaps),
    max(nats for nats, _ in gaps),
    sum(is_tie for _, is_tie in gaps),
    sum(a['acc'] != b['acc'] for a, b in zip(theirs, ours, strict=True)),
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a line for each task; the exit code is 1 if results differ."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--exported', help='by default it is made, and removed')
  options = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    exported = options.exported or os.path.join(folder, 'exported')
    if not options.exported:
      assert convert.main(['to-hf', options.checkpoint, exported]) == 0
    rows = compare(
      options.checkpoint, exported, pathlib.Path(text_files.data_directory())
    )
  for row in rows:
    print(
      f'{row.task}: {row.items} items, accuracy {row.theirs:.6f} with'
      f' transformers, {row.ours:.6f} here, {row.card:.6f} on the scorecard,'
      f' {row.differing} answers differ; {row.requests} likelihoods within'
      f' {row.nats:.1e} nats, {row.ties} of them ties:'
      f' {"equal" if row.is_equal else "NOT EQUAL"}'
    )
  return 0 if all(row.is_equal for row in rows) else 1


if __name__ == '__main__':
  sys.exit(main())
