"""Writes a self-contained page about a run: figures, samples, configuration."""

import json
import os
import pathlib
import statistics
from typing import Any, NamedTuple

from moe.evaluate import score
from moe.report import corpora, experts, gallery, templates
from moe.report import figures as draw
from moe.scale.quantities import counted, short
from moe.train import goodput, record_log
from moe.train.display import duration

Record = dict[str, Any]


class Baselines(NamedTuple):
  """Scores of n-gram models.

  Attributes:
    task: name of the task with the scored held-out documents.
    levels: name of the n-gram model -> bits per character.
  """

  task: str
  levels: dict[str, float]


class Main(NamedTuple):
  """The score of the large figure, the cards and the table of evaluations.

  Attributes:
    key: key of the score in a record.
    name: name of the score.
    title: name of the score above the large figure.
    caption: text below the large figure.
    is_higher_better: whether higher values are better.
  """

  key: str
  name: str
  title: str
  caption: str
  is_higher_better: bool = False


_BITS = Main(
  'bits_per_char',
  'bits per character',
  'Bits per character',
  'Bits per character are all nats of a document with its end mark, divided by'
  ' ln 2 and by the number of characters.\nThe training curve includes router'
  ' noise and dropped tokens; evaluation on held-out documents drops nothing.',
)
_LDDT = Main(
  'lddt_mean',
  'mean of lDDT and far lDDT',
  'Mean of lDDT and far lDDT',
  'The lDDT of CA atoms, and that of residues at least 12 apart, as means over'
  ' chains. The mean of both ranks checkpoints.\nThe training curve has crops,'
  ' with a random number of recycling passes; evaluation has whole chains.',
  is_higher_better=True,
)
# The small figures: (key of a record, title, format of the ticks, scale).
_SMALL = (
  ('loss', 'Loss with all its terms [nats]', '{x:g}', 'fit'),
  ('cross_entropy_text', 'Loss of text [nats per token]', '{x:g}', 'fit'),
  ('cross_entropy_image', 'Loss of image codes [nats]', '{x:g}', 'fit'),
  ('grad_norm', 'Gradient norm', '{x:g}', 'log'),
  ('learning_rate', 'Learning rate', '{x:g}', 'exact'),
  ('time.tokens_per_second', 'Tokens per second', '{x:,.0f}', 'zero'),
  ('dropped_fraction', 'Dropped tokens', '{x:.1%}', 'zero'),
  ('load_imbalance', 'Load of the busiest expert', '{x:g}', 'fit'),
  ('dropped_fraction_text', 'Dropped tokens of text', '{x:.1%}', 'zero'),
  ('dropped_fraction_image', 'Dropped tokens of images', '{x:.1%}', 'zero'),
  ('experts_used_text', 'Experts of a layer that see text', '{x:g}', 'zero'),
  ('experts_used_image', 'Experts that see images', '{x:g}', 'zero'),
  ('dead_experts', 'Experts without tokens', '{x:g}', 'zero'),
  ('time.mfu', 'Model FLOPs utilisation', '{x:.1%}', 'zero'),
)
# Further small figures of a folding run: the terms of the loss, and numbers
# that show whether a model has learnt more than the distances of neighbours.
_FOLDING = tuple(
  (key, title, '{x:g}', 'fit')
  for key, title in (
    ('lddt', 'lDDT'),
    ('lddt_far', 'lDDT of residues at least 12 apart'),
    ('ca_step', 'Distance of neighbouring CA atoms [Å]'),
    ('ca_steps_off', 'Share of these outside 3.6 to 4.0 Å'),
    ('ca_clashes', 'Share of other CA pairs below 3 Å'),
    ('mirror_is_worse', 'Share of chains whose mirror image fits worse'),
    ('predicted_lddt', 'Predicted lDDT'),
    ('fape', 'FAPE of backbone frames [10 Å]'),
    ('all_atom_fape', 'FAPE of all atoms [10 Å]'),
    ('distogram', 'Distogram [nats]'),
    ('smooth_lddt', '1 - smooth lDDT'),
    ('local_distances', 'Local distances'),
    ('torsions', 'Torsion angles'),
    ('torsion_lengths', 'Lengths of torsion vectors'),
    ('plddt', 'Cross-entropy of pLDDT [nats]'),
    ('aligned_errors', 'Cross-entropy of aligned errors [nats]'),
    ('violations', 'Violations'),
    ('load_balance', 'Load-balance loss'),
    ('router_z', 'Router z-loss'),
  )
)
# The texts at the end of the page: (title, file).
_TEXTS = (
  ('Configuration', 'config.gin'),
  ('Operative configuration', 'operative_config.gin'),
  ('Model', 'model.txt'),
)


def write_report(
  workdir: str | os.PathLike, output: str | os.PathLike | None = None
) -> pathlib.Path:
  """Writes the page of a run; returns its path.

  Args:
    workdir: directory of the run. log.jsonl must exist. The page also shows
      eval.jsonl, goodput.json, run.json, baselines.json, samples.json or
      samples.txt, gallery.npz, config.gin, operative_config.gin and model.txt,
      if they exist.
    output: file of the page; None for WORKDIR/report.html.

  Raises:
    ValueError: if the log has no step, or if a JSON file is invalid.
  """
  workdir = pathlib.Path(workdir)
  records = record_log.read(workdir / 'log.jsonl')
  if not records:
    raise ValueError(
      f'{workdir / "log.jsonl"} must hold at least one step, got none: give'
      ' the --workdir of a run that has been trained.'
    )
  evals = record_log.read(workdir / 'eval.jsonl')
  run = _json(workdir / 'run.json', {})
  baselines = _baselines(_json(workdir / 'baselines.json', {}), evals)
  main = _LDDT if 'lddt' in records[-1] else _BITS
  page = templates.render(
    'run_page.html',
    title=workdir.resolve().name,
    steps=counted(records[-1]['step'], 'training step'),
    num_evaluations=counted(len(evals), 'evaluation'),
    main=main,
    cards=_cards(records, evals, run, baselines, main),
    figures=_figures(records, evals, baselines, main),
    experts=experts.experts(records, run),
    corpora=corpora.corpora(corpora.shares(evals[-1]['eval']))
    if evals
    else None,
    evaluations=_evaluations(evals, main),
    samples=_samples(workdir),
    galleries=gallery.galleries(workdir),
    time=_time(workdir),
    run=_flat({k: v for k, v in run.items() if k != 'goodput'}),
    texts=[
      (title, file, (workdir / file).read_text(encoding='utf-8'))
      for title, file in _TEXTS
      if (workdir / file).exists()
    ],
  )
  path = pathlib.Path(output or workdir / 'report.html')
  path.write_text(page, encoding='utf-8')
  return path


def _time(workdir: pathlib.Path) -> dict[str, Any] | None:
  """A table of the run's time: parts of each attempt, and their sums."""
  attempts = goodput.read(workdir)
  if not attempts:
    return None
  whole = goodput.summary(attempts)
  rows = [[*a.values(), sum(a.values())] for a in attempts]
  total = [*whole['parts'].values(), whole['seconds']]
  return {
    'parts': goodput.PARTS,
    'rows': [(str(number), row) for number, row in enumerate(rows, 1)],
    'total': total,
    'shares': [value / max(whole['seconds'], 1e-9) for value in total],
  }


def _cards(
  records: list[Record],
  evals: list[Record],
  run: dict[str, Any],
  baselines: Baselines,
  main: Main,
) -> list[tuple[str, str, str]]:
  """The cards at the top of the page: (title, number, remark)."""
  cards, last = _held_out_cards(evals, baselines, main), records[-1]
  recent = records[-max(1, len(records) // 10) :]
  if last.get('tokens'):
    steps = f'in {counted(last["step"], "step")}'
    cards.append(('Tokens seen', short(last['tokens']), steps))
  seconds = _value(last, 'time.elapsed')
  if seconds is not None:
    speeds = _values(records, 'time.tokens_per_second')[1]
    median = statistics.median(speeds) if speeds else 0
    cards.append(
      ('Training time', duration(seconds), f'median {median:,.0f} tokens/s')
    )
  if 'params_total' in run:
    active = run.get('params_active')
    remark = f'{short(active)} active per token' if active else ''
    cards.append(('Parameters', short(run['params_total']), remark))
  for key, title, form in (
    ('dropped_fraction', 'Dropped', '{:.2%}'),
    ('load_imbalance', 'Imbalance', '{:.2f}'),
  ):
    values = _values(recent, key)[1]
    if values:
      mean = sum(values) / len(values)
      remark = f'mean of the last {counted(len(recent), "step")}'
      cards.append((title, form.format(mean), remark))
  return cards


def _held_out_cards(
  evals: list[Record], baselines: Baselines, main: Main
) -> list[tuple[str, str, str]]:
  """The cards of the first two held-out tasks and of the baselines."""
  cards = []
  for task in _tasks(evals)[:2]:
    steps, values = _held_out(evals, task, main.key)
    if not values:
      continue
    choose = max if main.is_higher_better else min
    best = choose(range(len(values)), key=values.__getitem__)
    remark = f'{main.name} on {task}, step {steps[-1]:,}'
    if best != len(values) - 1:
      remark += f'; best {values[best]:.3f} at step {steps[best]:,}'
    others, _ = _records(evals, task)
    if others:
      step = others[-1]['step']
      remark += f'; scores up to step {step:,} are of other documents'
    cards.append(('Held out', f'{values[-1]:.3f}', remark))
    if task == baselines.task:
      for name, level in baselines.levels.items():
        word = 'below' if values[-1] < level else 'above'
        gain = f'{abs(level - values[-1]):.3f}'
        remark = f'of {level:.3f} on {task}'
        cards.append((f'{word} {name}'.capitalize(), gain, remark))
  return cards


def _figures(
  records: list[Record],
  evals: list[Record],
  baselines: Baselines,
  main: Main,
) -> dict[str, list[str]]:
  held_out = {
    task: line
    for task in _tasks(evals)
    if (line := _held_out(evals, task, main.key))[0]
  }
  figures = {'large': [], 'small': []}
  scores = _values(records, main.key)
  if scores[0]:
    figures['large'].append(
      draw.curves(
        scores,
        held_out,
        {f'{n}, {baselines.task}': x for n, x in baselines.levels.items()},
        main.name,
      )
    )
  for key, title, ticks, scale in _SMALL + _FOLDING * (main is _LDDT):
    line = _values(records, key)
    if line[0] and (key != 'dead_experts' or any(line[1])):
      figures['small'].append(draw.small(line, title, ticks, scale))
  return figures


def _evaluations(evals: list[Record], main: Main) -> dict[str, Any] | None:
  """A table of held-out scores, by step and task."""
  tasks = _tasks(evals)
  rows = [
    (r['step'], [_value(r['eval'].get(t, {}), main.key) for t in tasks])
    for r in evals
  ]
  return {'tasks': tasks, 'rows': rows} if rows else None


def _tasks(evals: list[Record]) -> list[str]:
  return list(dict.fromkeys(task for r in evals for task in r['eval']))


def _held_out(
  evals: list[Record], task: str, key: str
) -> tuple[list[int], list[float]]:
  """(steps, values) of evaluations on the documents of the last evaluation."""
  _, equal = _records(evals, task)
  scores = [{'step': r['step'], **r['eval'].get(task, {})} for r in equal]
  return _values(scores, key)


def _records(
  evals: list[Record], task: str
) -> tuple[list[Record], list[Record]]:
  """Divides evaluations by the held-out documents that they scored.

  An evaluation without a hash of its documents is treated as if it had scored
  the documents of the last evaluation.

  Returns:
    (evaluations on other documents, evaluations on the documents of the last
    evaluation).
  """
  of = lambda r: _value(r, 'held_out').get(task) if 'held_out' in r else None
  last = next((of(r) for r in reversed(evals) if of(r)), None)
  equal = [r for r in evals if of(r) in (None, last)]
  return [r for r in evals if r not in equal], equal


def _baselines(content: dict[str, Any], evals: list[Record]) -> Baselines:
  """Reads the scores of baselines.json.

  There are no scores if the held-out documents have changed since the file was
  written.

  Earlier versions of this project wrote {name: bits per character} for the
  first task.
  """
  if 'scores' not in content:
    return Baselines(next(iter(_tasks(evals)), ''), content)
  task = content['task']
  scored = [_value(r, 'held_out') or {} for r in evals]
  last = next((s[task] for s in reversed(scored) if task in s), None)
  if last not in (None, content['held_out']):
    return Baselines(task, {})
  scores = map(score.from_json, content['scores'])
  return Baselines(task, {one.name: one.value for one in scores})


def _values(records: list[Record], key: str) -> tuple[list[int], list[float]]:
  """(steps, values) of the records with a number at a key such as 'a.b'."""
  pairs = [(r['step'], _value(r, key)) for r in records]
  pairs = [(s, v) for s, v in pairs if isinstance(v, int | float)]
  return [s for s, _ in pairs], [v for _, v in pairs]


def _value(record: Record, key: str) -> Any:
  """The entry of nested objects at a key such as 'a.b', or None."""
  for part in key.split('.'):
    record = record.get(part) if isinstance(record, dict) else None
  return record


def _samples(workdir: pathlib.Path) -> list[dict[str, str]]:
  """Reads the samples of a run, and removes the prompt from each text."""
  samples = _json(workdir / 'samples.json', [])
  plain = workdir / 'samples.txt'
  if not samples and plain.exists():
    samples = [{'prompt': '', 'text': plain.read_text(encoding='utf-8')}]
  return [
    {**sample, 'text': sample['text'].removeprefix(sample['prompt'])}
    for sample in samples
  ]


def _json(path: pathlib.Path, missing: Any) -> Any:
  if not path.exists():
    return missing
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(
      f'{path} must be JSON, got {error}: correct or remove the file.'
    ) from error


def _flat(entries: dict[str, Any], prefix: str = '') -> list[tuple[str, str]]:
  """Makes rows (key, value) from nested objects, with keys such as 'a.b'."""
  rows = []
  for key, value in entries.items():
    if isinstance(value, dict):
      rows += _flat(value, f'{prefix}{key}.')
    elif isinstance(value, int) and not isinstance(value, bool):
      rows.append((prefix + key, f'{value:,}'))
    else:
      rows.append((prefix + key, str(value)))
  return rows
