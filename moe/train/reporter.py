"""Reports each step, and says which data made a step skip its update."""

import shlex
import time
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from moe.checkpoint import listing
from moe.data.order import Source
from moe.objectives.objective import Facts
from moe.parallel import processes
from moe.train import metrics as metrics_lib
from moe.train.program import Program
from moe.train.progress import Progress
from moe.train.state import TrainState
from moe.types import Array, Batch, Pair


class TrainingError(ValueError):
  """Training cannot go on; the message says why, and what to change."""


class Sources(Protocol):
  """What the reader of training batches knows about their origin.

  Attributes:
    facts: what the score of the objective needs to know about the data.
  """

  facts: Facts

  def sources(self, step: int) -> list[Source]:
    """What each store gives to the batch of a step, counted from 0."""


class _Step(NamedTuple):
  """A step that runs.

  Attributes:
    step: number of the step, counted from 1.
    metrics: its metrics, on the devices.
    amount: how many units of the objective it reads.
    batch: the rows of this process.
  """

  step: int
  metrics: dict[str, Pair]
  amount: int | Array
  batch: Batch


class Reporter:
  """Fetches a step's metrics while the next step already runs."""

  def __init__(
    self,
    progress: Progress,
    program: Program,
    reader: Sources,
    steps_dir: Any,
    max_bad_steps: int,
  ):
    """Makes a reporter that has seen no step.

    Args:
      progress: writes the reports.
      program: the jitted steps.
      reader: the training data.
      steps_dir: the directory of checkpoints.
      max_bad_steps: number of consecutive steps with a non-finite loss or
        gradient after which training ends.
    """
    self._progress = progress
    self._program = program
    self._reader = reader
    self._steps_dir = steps_dir
    self._max_bad_steps = max_bad_steps
    self._bad_steps = 0
    self._waiting = None
    self._mark = 0.0  # When the previous step ended.

  def resume(self) -> None:
    """Restarts the clock: time before this call is not training time."""
    self._mark = time.perf_counter()

  def step_started(
    self,
    step: int,
    ts: TrainState,
    device_metrics: dict[str, Pair],
    amount: int | Array,
    batch: Batch,
  ) -> None:
    """Keeps the metrics of a new step, and reports the step before it.

    Args:
      step: number of the new step, counted from 1.
      ts: the state after it.
      device_metrics: its metrics.
      amount: how many units of the objective it reads.
      batch: the rows of this process.

    Raises:
      TrainingError: see `flush`.
    """
    self.flush(ts)
    self._waiting = _Step(step, device_metrics, amount, batch)

  def flush(self, ts: TrainState) -> None:
    """Reports the step whose metrics are kept; waits until it has ended.

    Args:
      ts: the newest state.

    Raises:
      TrainingError: if too many steps in a row were not finite, or if the state
        after a step is not finite.
    """
    if self._waiting is None:
      return
    asked = time.perf_counter()
    waiting, self._waiting = self._waiting, None
    objective, step = self._program.objective, waiting.step
    record = metrics_lib.summarize(
      waiting.metrics, objective.score, self._reader.facts
    )
    record[objective.unit] = int(waiting.amount)
    is_broken = record.pop('broken', 0)
    now = time.perf_counter()
    self._progress.step(step, record, now - self._mark)
    processes.tell_step(step, asked - self._mark, now - self._mark)
    self._mark = now
    if is_broken:
      raise TrainingError(
        f'Step {step} has made a state that is not finite, or whose parameters'
        ' are too large to be squared; it is not saved: lower LEARNING_RATE,'
        ' and run the command again to go on from the newest checkpoint.'
      )
    if record['skipped'] or record.get('spike'):
      self._explain(waiting, ts)
    if record.get('spike'):
      self._progress.note(
        f'warning: step {step:,} was skipped, its gradient norm'
        f' {record["grad_norm"]:.4g} is above the limit'
        f' {record["grad_norm_limit"]:.4g}; `{self._rewind(step, step)}` goes'
        ' back before it and leaves out its batch'
      )
    self._bad_steps = self._bad_steps + 1 if record['skipped'] else 0
    if self._bad_steps >= self._max_bad_steps:
      first = step - self._bad_steps + 1
      raise TrainingError(
        f'The loss or its gradient was not finite for {self._bad_steps} steps'
        f' up to step {step}; these steps did not change the parameters: lower'
        ' LEARNING_RATE, or look at the data of these steps in'
        f' {self._progress.bad_steps_path}; `{self._rewind(first, step)}`'
        ' leaves it out.'
      )

  def _explain(self, waiting: _Step, ts: TrainState) -> None:
    """Records what a skipped step has read, and the loss of each source."""
    sources = self._reader.sources(waiting.step - 1)
    losses = losses_by_source(self._program, ts, waiting.batch, sources)
    self._progress.bad_step(
      waiting.step,
      [
        {'source': s.name, 'records': s.records, 'loss': loss}
        for s, loss in zip(sources, losses, strict=True)
        if s.records.size
      ],
    )

  def _rewind(self, first: int, last: int) -> str:
    """The command that goes back before some steps and leaves them out."""
    before = [s for s in listing.steps(self._steps_dir) if s < first]
    workdir = shlex.quote(self._progress.workdir)
    step = before[-1] if before else 'STEP'
    return (
      f'python -m launch.checkpoint rewind {workdir} --to={step}'
      f' --skip={first}:{last + 1}'
    )


def losses_by_source(
  program: Program, ts: TrainState, batch: Batch, sources: list[Source]
) -> list[float]:
  """The loss of the rows of each source alone, without dropout and noise.

  The rows of other sources are empty, so that a NaN in them does not reach the
  loss. With several processes, all of them must call this.

  Args:
    program: the jitted steps.
    ts: the state.
    batch: the rows of this process.
    sources: the sources of the batch.
  """
  return [_loss(program, ts, _only(batch, source.places)) for source in sources]


def _only(batch: Batch, places: np.ndarray) -> Batch:
  """A copy of a batch in which the rows at other places are zeros."""

  def one(array: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(array)
    kept[places] = array[places]
    return kept

  return jax.tree.map(one, batch)


def _loss(program: Program, ts: TrainState, batch: Batch) -> float:
  """The loss of a batch as an evaluation computes it."""
  terms = jax.device_get(program.eval_step(ts, program.put(batch)))
  return float(program.objective.total(terms))
