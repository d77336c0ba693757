"""Reports a run: logs, TensorBoard, and one line for people.

log.jsonl has a record for each step, and eval.jsonl for each evaluated step.
quarantine.jsonl has a line for each record of the data that a process cannot
read. If there are several processes, it is written before each checkpoint.
bad_steps.jsonl has a line for each skipped step, with the records that the step
has read.

A record of log.jsonl holds what the step computed and, under `time`, how long
the step took. A resumed run first removes the records after the restored step.
So its log is the same as that of an unbroken run, except for `time`.
"""

import collections
import logging
import math
import os
import time
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from moe.objectives.objective import Measure, Objective
from moe.parallel import multihost
from moe.train import record_log
from moe.train.display import make_display, status
from moe.train.goodput import Goodput
from moe.train.watch import Watch

_logger = logging.getLogger(__name__)

# Limit on the numbers in `layers` per step, on average. A model with n times as
# many numbers writes them only every n steps, so that its log stays readable.
_MAX_VALUES = 2048
_FLUSH_SECONDS = 30

_SPEED_WINDOW = 50  # The time left is estimated from this many steps.
_LAYER_PERIOD = 10  # Steps between numbers by layer in TensorBoard.
# A step draws an image only if the last one is older than this, in seconds.
# Drawing can take longer than a step.
_IMAGE_SECONDS = 60.0


class Progress:
  """Logs every step and shows people how the run is going.

  Every process makes and calls its own `Progress`, but only the first process
  writes logs and shows lines.

  Attributes:
    workdir: directory of the run.
    total_steps: number of the last step.
    goodput: how the run's time is divided among its uses.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    objective: Objective,
    total_steps: int,
    resume_step: int = 0,
    unit_seconds: float | None = None,
    drop_warning: float = 0.1,
    stream: TextIO | None = None,
    goodput: Goodput | None = None,
  ):
    """Opens the logs of a run and cuts them off after the restored step.

    Args:
      workdir: directory of the run; made if it is missing.
      objective: what is trained.
      total_steps: number of the last step.
      resume_step: number of the restored step, 0 for a new run.
      unit_seconds: seconds that all chips together need at their published peak
        for the model FLOPs of one unit of the objective, such as a token; None
        if the peak is not known.
      drop_warning: share of dropped tokens above which people are warned.
      stream: stream for the lines, by default sys.stderr.
      goodput: the time of the run so far; by default a new `Goodput`.
    """
    self.workdir = os.fspath(workdir)
    self.total_steps = total_steps
    self.goodput = goodput or Goodput()
    self._objective = objective
    self._unit_seconds = unit_seconds
    # Durations of the last steps, in seconds.
    self._recent = collections.deque(maxlen=_SPEED_WINDOW)
    self._watch = Watch(drop_warning)
    self._log = self._evals = self._quarantine = self._bad_steps = None
    self._board = self._display = None
    self._loads = {}  # Loads of the last step: of all tokens, and by modality.
    # Unreadable records: reported ones, those in the file, and entries that are
    # not in the file yet.
    self._reported, self._listed, self._unlisted = set(), set(), []
    self._drawn_at = time.monotonic()
    # Seconds, and units of the objective (such as tokens), of all steps so far.
    self._elapsed, self._amount = 0.0, 0
    if jax.process_index() != 0:
      return
    os.makedirs(self.workdir, exist_ok=True)
    self._log = record_log.RecordLog(self._path('log.jsonl'), resume_step)
    self._evals = record_log.RecordLog(self._path('eval.jsonl'), resume_step)
    self._quarantine = record_log.RecordLog(
      self._path('quarantine.jsonl'), resume_step
    )
    self._bad_steps = record_log.RecordLog(self.bad_steps_path, resume_step)
    self._listed = set(
      map(_record_of, record_log.read(self._path('quarantine.jsonl')))
    )
    self._reported = set(self._listed)
    self._display = make_display(stream)
    self._board = _Board(self._path('tensorboard'))
    newest = lambda name: record_log.newest_first(self._path(name))
    self._watch.resume(newest('log.jsonl'))
    self._board.resume(newest('log.jsonl'), newest('eval.jsonl'))
    last = self._log.last or {'step': 0}
    self._elapsed = last.get('time', {}).get('elapsed') or 0.0
    self._amount = last.get(objective.unit, 0)
    if last['step'] != resume_step:
      self.note(
        f'{self._path("log.jsonl")} lacks steps {last["step"] + 1} to'
        f' {resume_step}: the log was lost or edited, the checkpoint was not.'
      )

  def step(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
    """Records one training step.

    Args:
      step: number of the step, counted from 1.
      metrics: scalars by name. One has the name of the objective's unit, such
        as `tokens`: the number of units that the step read. A sparse model also
        has `layers`, lists with an entry for each sparse layer. One of the
        lists is `load` [L][E], shares of the rows.
      seconds: duration of the step.
    """
    if self._log is None:
      return
    unit = self._objective.unit
    self._elapsed += seconds
    self._amount += metrics[unit]
    self._recent.append(seconds)
    speed = metrics[unit] / max(seconds, 1e-9)
    peak = self._unit_seconds
    timing = {
      'seconds': round(seconds, 6),
      f'{unit}_per_second': round(speed, 1),
      'mfu': None if peak is None else round(peak * speed, 5),
      'elapsed': round(self._elapsed, 6),
      'eta': round((self.total_steps - step) * float(np.mean(self._recent)), 3),
    }
    record = {'step': step, **metrics, unit: self._amount}
    layers = metrics.get('layers')
    size = sum(np.size(values) for values in (layers or {}).values())
    if layers and step % math.ceil(size / _MAX_VALUES):
      del record['layers']
    warnings = self._watch.see(record)
    if self._watch.dead_LE is not None:
      record['dead_experts'] = int(self._watch.dead_LE.sum())
    record['time'] = timing
    self._log.append(record)
    self._board.step(record)
    self._loads = {
      name: values
      for name, values in (layers or {}).items()
      if name.startswith('load')
    }
    if time.monotonic() - self._drawn_at > _IMAGE_SECONDS:
      self._draw(step)
    self._display.show(status(record, self.total_steps, self._objective))
    for warning in warnings:
      self.note(f'warning: {warning}')

  def evaluation(
    self,
    step: int,
    results: dict[str, dict[str, Any]],
    scores: dict[str, Measure],
    held_out: dict[str, str] | None = None,
  ) -> None:
    """Records the results of all evaluations of a step.

    Args:
      step: number of the step, counted from 1.
      results: name of an evaluation -> its metrics by name.
      scores: name of an evaluation -> the metric that people are shown.
      held_out: task -> hash of its held-out documents, if known.
    """
    if self._evals is None:
      return
    record = {'step': step, 'eval': results}
    self._evals.append(record | ({'held_out': held_out} if held_out else {}))
    self._board.evaluation(step, results)
    self._draw(step)
    for name, metrics in results.items():
      value, unit = metrics.get(scores[name].name), scores[name].unit
      if value is not None:
        self.note(f'step {step:,}: {name} {value:.4f} {unit} held out')

  def quarantine(self, step: int, entries: list[dict[str, Any]]) -> None:
    """Reports the unreadable records of the data, each only once in a run.

    A process that is alone adds them to the file at once. Several processes add
    them in `sync`.

    Args:
      step: number of the step that found the newest entry, counted from 1.
      entries: all entries so far, {'file', 'record', 'error'}.
    """
    for entry in entries:
      if _record_of(entry) in self._reported:
        continue
      self._reported.add(_record_of(entry))
      text = (
        f'warning: step {step:,} left its row empty: record {entry["record"]}'
        f' of {entry["file"]}: {entry["error"]}'
      )
      self._unlisted.append({'step': step, **entry})
      if self._display is None:  # Each process reads its own rows.
        _logger.info(f'process {jax.process_index()}: {text}')
      else:
        self.note(text)
    if jax.process_count() == 1:
      self._list(self._unlisted)

  def _list(self, entries: list[dict[str, Any]]) -> None:
    """Adds unreadable records to the file, each only once in a run."""
    self._unlisted = []
    if self._quarantine is None:
      return
    for entry in sorted(entries, key=lambda e: e['step']):
      if _record_of(entry) not in self._listed:
        self._listed.add(_record_of(entry))
        self._quarantine.append(entry)

  @property
  def bad_steps_path(self) -> str:
    """The file of the steps that were skipped."""
    return self._path('bad_steps.jsonl')

  def bad_step(self, step: int, sources: list[dict[str, Any]]) -> None:
    """Records what a skipped step has read.

    Args:
      step: number of the step, counted from 1.
      sources: {'source', 'records', 'loss'} of each store: its name, the
        numbers of the records in it, and the loss of these records alone.
    """
    if self._bad_steps is None:
      return
    self._bad_steps.append({'step': step, 'sources': sources})
    losses = [
      f'{len(s["records"])} records of {s["source"]} with loss {s["loss"]:.4g}'
      for s in sources
    ]
    self.note(
      f'step {step:,} has read {", ".join(losses)}: see {self.bad_steps_path}'
    )

  def has_evaluation(self, step: int) -> bool:
    """Whether the newest evaluation in the log is that of a step.

    All processes must call this.
    """
    last = self._evals.last if self._evals is not None else None
    known = last is not None and last['step'] == step
    if jax.process_count() > 1:
      known = bool(multihost_utils.broadcast_one_to_all(np.array(known)))
    return known

  def note(self, text: str) -> None:
    """Shows people a sentence beside the status line."""
    if self._display is not None:
      self._display.note(text)

  def sync(self) -> None:
    """Flushes the logs to the disk; all processes must call this.

    So when a machine is lost, the log has all steps of the last checkpoint.
    """
    if jax.process_count() > 1:
      self._list(multihost.gathered(self._unlisted))
    for log in (self._log, self._evals, self._quarantine, self._bad_steps):
      if log is not None:
        log.sync()

  def close(self) -> None:
    """Closes the logs and the display."""
    self._list(self._unlisted)  # After an error the others give no entries.
    logs = self._log, self._evals, self._quarantine, self._bad_steps
    for part in (*logs, self._board, self._display):
      if part is not None:
        part.close()
    self._log = self._evals = self._quarantine = self._bad_steps = None
    self._board = self._display = None

  def _draw(self, step: int) -> None:
    """Adds heat maps of the last step's loads to TensorBoard."""
    self._drawn_at = time.monotonic()
    for name, load_LE in self._loads.items():
      self._board.load_image(step, name, np.asarray(load_LE, np.float32))

  def _path(self, name: str) -> str:
    return os.path.join(self.workdir, name)


def _record_of(entry: dict[str, Any]) -> tuple[str, int]:
  return entry['file'], entry['record']


class _Board:
  """Writes TensorBoard event files; opens them at the first record."""

  def __init__(self, path: str):
    self._path = path
    self._purge_step = 1
    self._writer = None

  def resume(self, records: Iterator[dict], evals: Iterator[dict]) -> None:
    """Writes the last events again, since a killed run may have lost them.

    TensorBoard then hides the old events of these steps.

    Args:
      records: records of the steps so far, the newest first.
      evals: records of the evaluations so far, the newest first.
    """
    last = next(records, None)
    if last is None:
      return
    end = last['time']['elapsed'] - 2 * _FLUSH_SECONDS
    again = [last, *takewhile(lambda r: r['time']['elapsed'] >= end, records)]
    self._purge_step = again[-1]['step']
    for record in reversed(again):
      self.step(record)
    scored = takewhile(lambda r: r['step'] >= self._purge_step, evals)
    for record in reversed(list(scored)):
      self.evaluation(record['step'], record['eval'])

  def _open(self):
    if self._writer is None:
      # The import is slow. In a new run, the second step runs at the same time.
      import tensorboardX

      self._writer = tensorboardX.SummaryWriter(
        self._path, purge_step=self._purge_step, flush_secs=_FLUSH_SECONDS
      )
    return self._writer

  def step(self, record: dict[str, Any]) -> None:
    """Writes the scalars of a step; every tenth step also those of layers."""
    for group, values in (('train', record), ('time', record['time'])):
      self._scalars(group, record['step'], values)
    if record['step'] % _LAYER_PERIOD:
      return
    for name, values in record.get('layers', {}).items():
      if not name.startswith('load'):
        numbers = {f'layer_{i}': value for i, value in enumerate(values)}
        self._scalars(f'router_{name}', record['step'], numbers)

  def evaluation(self, step: int, results: dict[str, dict[str, Any]]) -> None:
    """Writes the scalars of an evaluation."""
    for task, scores in results.items():
      self._scalars(f'eval/{task}', step, scores)

  def load_image(self, step: int, name: str, load_LE: np.ndarray) -> None:
    """Draws the load of every expert of every layer as a heat map."""
    pixels = _heat_map(load_LE * load_LE.shape[1])
    self._open().add_image(f'expert_{name}', pixels, step, dataformats='HWC')

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._writer is not None:
      self._writer.close()

  def _scalars(self, group: str, step: int, values: dict[str, Any]) -> None:
    for name, value in values.items():
      if isinstance(value, int | float) and name != 'step':
        self._open().add_scalar(f'{group}/{name}', value, step)


def _heat_map(load_LE: np.ndarray) -> np.ndarray:
  """Draws loads, as multiples of an even share, into [height, width, 3]."""
  # matplotlib is slow to import and rarely used.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  layers, experts = load_LE.shape
  size = (min(3 + 0.18 * experts, 14), min(1.4 + 0.22 * layers, 10))
  figure = Figure(size, layout='constrained')
  canvas = FigureCanvasAgg(figure)
  axes = figure.subplots()
  image = axes.imshow(load_LE, aspect='auto', vmin=0, vmax=3, cmap='viridis')
  axes.set(xlabel='expert', ylabel='sparse layer')
  figure.colorbar(image, label='load, 1 = even share', extend='max')
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]
