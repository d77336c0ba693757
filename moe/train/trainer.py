"""The training loop, to be read from top to bottom."""

import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from etils import epath
from jax.experimental import multihost_utils

from moe import bounds, failpoints, stop_signals
from moe.data.order import Source
from moe.objectives.objective import Facts
from moe.parallel import multihost, processes
from moe.train.ahead import Ahead
from moe.train.evaluation import Evaluation
from moe.train.evaluator import Evaluator
from moe.train.program import Program
from moe.train.progress import Progress
from moe.train.reporter import Reporter
from moe.train.state import TrainState
from moe.train.watchdog import Watchdog
from moe.types import Batch, PyTree

EXIT_PREEMPTED = stop_signals.EXIT_STOPPED
# While the profiler writes a trace, it keeps Python's lock. So the other
# processes expect no sign of life for this many seconds.
_TRACE_SECONDS = 900.0


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of the training loop.

  Attributes:
    train_steps: number of steps of the whole run.
    eval_period: steps between evaluations; 0 evaluates only at the end.
    save_period: steps between checkpoints; the last step is always saved.
    seed: seed of parameters, data order and noise; 0 to 2^32 - 1.
    num_microbatches: parts of a batch, which are computed one by one.
    keep_last: number of the newest checkpoints to keep.
    keep_best: number of the best checkpoints to keep; they may be among the
      newest.
    max_bad_steps: number of consecutive steps with a non-finite loss or
      gradient after which the run ends with an error.
    drop_warning: share of dropped tokens above which people are warned.
    spike_deviations: a step is skipped if its gradient norm lies so many
      standard deviations above the mean of the steps before; 0 for never.
    hang_seconds: seconds without a sign of life after which the run is ended; 0
      for no limit.
    profile_steps: (first, last), counted from 0: a profiler trace begins with
      step `first` and ends before step `last`; empty for no trace.
  """

  train_steps: int
  eval_period: int = 0
  save_period: int = 1000
  seed: int = 0
  num_microbatches: int = 1
  keep_last: int = 2
  keep_best: int = 1
  max_bad_steps: int = 3
  drop_warning: float = 0.1
  spike_deviations: float = 0.0
  hang_seconds: float = 1800.0
  profile_steps: tuple[int, ...] = ()

  def __post_init__(self):
    least = {
      'train_steps': 1,
      'eval_period': 0,
      'save_period': 1,
      'num_microbatches': 1,
      'keep_last': 1,
      'keep_best': 0,
      'max_bad_steps': 1,
    }
    for name, minimum in least.items():
      meaning = 'a number of the training loop'
      bounds.at_least(minimum, name.upper(), getattr(self, name), meaning)
    bounds.seed('SEED', self.seed)
    share = 'a share of the routed tokens'
    bounds.within('DROP_WARNING', self.drop_warning, share, above=0, most=1)
    spikes = 'standard deviations of the gradient norm; 0 skips none'
    bounds.within('SPIKE_DEVIATIONS', self.spike_deviations, spikes, least=0)
    never = '0 waits for ever'
    bounds.within('HANG_SECONDS', self.hang_seconds, never, least=0)
    steps = (-1, *self.profile_steps, self.train_steps)
    if len(steps) not in (2, 4) or list(steps) != sorted(set(steps)):
      raise ValueError(
        f'PROFILE_STEPS={self.profile_steps} must be () or two ascending steps'
        f' below TRAIN_STEPS={self.train_steps}.'
      )

  def is_evaluated(self, step: int) -> bool:
    """Whether an evaluation follows after `step` steps."""
    period = self.eval_period
    return step == self.train_steps or (period > 0 and step % period == 0)


class TrainingData(Protocol):
  """The source of the training batches.

  Attributes:
    facts: what the score of the objective needs to know about the data.
    quarantine: {'file', 'record', 'error'} of each record that could not be
      read.
  """

  facts: Facts
  quarantine: list[dict[str, Any]]

  def batch(self, step: int) -> Batch:
    """The batch of a step, counted from 0."""

  def sources(self, step: int) -> list[Source]:
    """What each store gives to the batch of a step."""


class Saver(Protocol):
  """The part of `moe.checkpoint.save.Checkpointer` that the loop uses.

  Attributes:
    directory: directory of the steps.
  """

  directory: epath.Path

  def save(
    self, step: int, state: PyTree, meta: dict[str, Any], metrics: dict
  ) -> bool:
    """Starts to save a step."""

  def check(self) -> None:
    """Raises the error of a save that failed in the background."""

  def wait(self) -> None:
    """Waits for the last save."""


class _Stop:
  """Notices signals to stop, and lets all processes stop after the same step.

  Attributes:
    is_set: whether a signal has come. With several processes it is set only
      when all of them have agreed in `reached`, because no process may leave a
      step in which the others take part.
    name: name of the signal.
  """

  def __init__(self):
    self.is_set = False
    self.name = 'SIGTERM'
    self._asked = 0

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """A context in which signals are noticed."""
    if jax.process_count() == 1:
      with stop_signals.handled(self._set):
        yield
      return
    # JAX handles SIGTERM and informs all processes. So we turn other signals
    # into it.
    others = stop_signals.handled(
      lambda _: os.kill(os.getpid(), signal.SIGTERM),
      (signal.SIGINT, signal.SIGHUP),
    )
    with others, multihost.sharing_sigterm():
      yield

  def reached(self) -> bool:
    """Whether to stop here. All processes must ask equally often."""
    if jax.process_count() > 1 and not self.is_set:
      self._asked += 1
      self.is_set = multihost_utils.reached_preemption_sync_point(self._asked)
    return self.is_set

  def asking(self, function: Callable) -> Callable:
    """Wraps a function so that `reached` is asked before each call of it."""

    def call(*args: Any) -> Any:
      self.reached()
      return function(*args)

    return call

  def _set(self, name: str) -> None:
    self.is_set, self.name = True, name


def train(
  settings: Settings,
  program: Program,
  reader: TrainingData,
  evaluations: dict[str, Evaluation],
  checkpointer: Saver,
  progress: Progress,
  meta: dict[str, Any],
  ts: TrainState,
) -> tuple[TrainState, int]:
  """Trains from the step of `ts` to the end.

  Args:
    settings: settings of the loop.
    program: the jitted steps.
    reader: the training data.
    evaluations: evaluations by name; the first one ranks checkpoints.
    checkpointer: saves the state.
    progress: writes the logs and shows the state of the run.
    meta: facts about the run that are saved with every checkpoint.
    ts: state to start from; its arrays are donated to the first step.

  Returns:
    (state, exit code): 0 at the end, 75 after a signal with everything saved.

  Raises:
    TrainingError: if the loss or the gradient stays non-finite, or if the state
      after an update is not finite.
  """
  # ---- Set up ----------------------------------------------------------------
  first = int(ts.step)
  stop = _Stop()
  objective = program.objective
  reporter = Reporter(
    progress, program, reader, checkpointer.directory, settings.max_bad_steps
  )
  watchdog = Watchdog(settings.hang_seconds, progress.workdir)
  asking = program._replace(eval_step=stop.asking(program.eval_step))
  evaluator = Evaluator(
    evaluations, asking, progress, lambda: stop.is_set, meta, watchdog
  )
  is_judged = lambda step: bool(evaluations) and settings.is_evaluated(step)

  def leave(step: int, scores: dict[str, float]) -> tuple[TrainState, int]:
    """Saves the state after a signal, and returns the result of `train`."""
    with _checkpointing(watchdog, progress):
      checkpointer.save(step, ts, meta, scores)
      checkpointer.wait()
    progress.note(
      f'{stop.name}: step {step:,} is saved; run the command again to go on.'
    )
    return ts, EXIT_PREEMPTED

  # ---- Loop ------------------------------------------------------------------
  scores = {}  # The scores of the last step, if it was evaluated.
  with stop.listening(), watchdog, Ahead() as ahead:
    ahead.start(functools.partial(_read, reader, first))
    if (first and is_judged(first)) and not evaluator.make_up_for(
      first, ts, checkpointer.directory
    ):
      return ts, EXIT_PREEMPTED
    reporter.resume()
    for step in range(first, settings.train_steps):
      done = step + 1
      batch = _read_ahead(ahead, stop, reader, progress, watchdog, done)
      if batch is None:
        reporter.flush(ts)
        return leave(step, scores)
      ahead.start(functools.partial(_read, reader, done))
      _profile(settings.profile_steps, first, step, progress.workdir)
      ts, device_metrics = program.train_step(ts, program.put(batch))
      failpoints.reach('run.step')
      amount = program.total(objective.amount, batch)
      reporter.step_started(done, ts, device_metrics, amount, batch)
      checkpointer.check()

      is_last = done == settings.train_steps
      # A signal may come at any moment. We ask once, so that all uses agree.
      is_stopped = stop.reached()
      is_saved = is_last or is_stopped or done % settings.save_period == 0
      is_due, scores = is_judged(done), {}
      if not (is_saved or is_due):
        continue
      reporter.flush(ts)
      # The next attempt makes up for an evaluation that a signal prevents.
      if is_due and not is_stopped:
        scores = evaluator.scores(done, ts)
        reporter.resume()  # Saves count as training time, evaluations do not.
      # There are no scores if a signal has prevented or ended the evaluation.
      is_interrupted = is_due and not scores
      if is_interrupted or (is_stopped and not is_last):
        return leave(done, scores)
      if is_saved:
        with _checkpointing(watchdog, progress):
          checkpointer.save(done, ts, meta, scores)

    # ---- End -----------------------------------------------------------------
    with _checkpointing(watchdog, progress):
      checkpointer.wait()
  return ts, 0


@contextlib.contextmanager
def _checkpointing(watchdog: Watchdog, progress: Progress) -> Iterator[None]:
  """Flushes the logs; counts the block as time for checkpoints."""
  watchdog.sees('a checkpoint')
  with progress.goodput.spent('checkpointing'):
    progress.sync()
    yield


def _read(reader: TrainingData, step: int) -> Batch:
  failpoints.reach('run.read')
  return reader.batch(step)


def _read_ahead(
  ahead: Ahead,
  stop: _Stop,
  reader: TrainingData,
  progress: Progress,
  watchdog: Watchdog,
  step: int,
) -> Batch | None:
  """The batch of a step, or None if a signal came before the batch was read.

  Records that could not be read are reported, too.
  """
  watchdog.sees('the data')
  try:
    with progress.goodput.spent('loading'):
      return ahead.result(lambda: stop.is_set)
  finally:  # Also after an error, since unreadable records may be its cause.
    watchdog.sees('the devices')
    progress.quarantine(step, reader.quarantine)


def _profile(
  steps: tuple[int, ...], first: int, step: int, workdir: str
) -> None:
  """Starts or stops the profiler trace; a resumed run starts it again."""
  if not steps or first >= steps[1]:
    return
  if step == max(first, steps[0]):
    jax.profiler.start_trace(os.path.join(workdir, 'profile'))
  if step == steps[1]:
    processes.tell_busy(_TRACE_SECONDS)
    jax.profiler.stop_trace()
