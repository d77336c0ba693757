"""Evaluates a run between two steps; logs results and ranks checkpoints."""

from collections.abc import Callable
from typing import Any

from etils import epath

from moe import failpoints
from moe.checkpoint import listing
from moe.train.evaluation import Evaluation
from moe.train.program import Program
from moe.train.progress import Progress
from moe.train.state import TrainState
from moe.train.watchdog import Watchdog


class Evaluator:
  """Makes all evaluations of a step."""

  def __init__(
    self,
    evaluations: dict[str, Evaluation],
    program: Program,
    progress: Progress,
    is_stopped: Callable[[], bool],
    meta: dict[str, Any],
    watchdog: Watchdog,
  ):
    """Keeps what every evaluation needs.

    Args:
      evaluations: evaluations by name; the first one ranks checkpoints.
      program: program of the run.
      progress: writes the results.
      is_stopped: () -> whether a signal has come.
      meta: metadata of the checkpoints; it identifies the held-out data.
      watchdog: gets a sign of life at each batch.
    """
    self._evaluations = evaluations
    self._program = program._replace(
      eval_step=watchdog.watched('an evaluation', program.eval_step)
    )
    self._progress = progress
    self._is_stopped = is_stopped
    self._meta = meta

  def scores(self, step: int, ts: TrainState) -> dict[str, float]:
    """Evaluates a step; returns {ranking metric: value}, {} after a signal."""
    results = self._results(ts)
    if results:
      self._record(step, results)
    return results and _ranking_score(self._evaluations, results)

  def make_up_for(
    self, step: int, ts: TrainState, directory: epath.Path
  ) -> bool:
    """Evaluates the restored step unless its evaluation is logged.

    Returns False if a signal has ended the evaluation.
    """
    if self._progress.has_evaluation(step):
      return True
    results = self._results(ts)
    if results:
      # The log is written last, since a logged step is not evaluated again.
      scores = _ranking_score(self._evaluations, results)
      listing.add_metrics(
        directory / str(step), scores, self._meta.get('ranked_on')
      )
      failpoints.reach('run.score')
      self._record(step, results)
    return bool(results)

  def _results(self, ts: TrainState) -> dict[str, dict[str, Any]]:
    """The metrics of every evaluation by its name; empty if a signal came."""
    results = {}
    for name, evaluation in self._evaluations.items():
      with self._progress.goodput.spent('evaluating'):
        results[name] = evaluation.metrics(self._program, ts, self._is_stopped)
      if self._is_stopped():
        return {}
    return results

  def _record(self, step: int, results: dict[str, dict[str, Any]]) -> None:
    """Writes the results to the log."""
    scores = {name: e.score for name, e in self._evaluations.items()}
    held_out = self._meta.get('held_out')
    self._progress.evaluation(step, results, scores, held_out)


def _ranking_score(
  evaluations: dict[str, Evaluation], results: dict[str, dict[str, Any]]
) -> dict[str, float]:
  """{name: value} of the first evaluation's score."""
  first = next(iter(evaluations))
  name = evaluations[first].score.name
  if name not in results[first]:
    raise ValueError(
      f"The evaluation '{first}' ranks checkpoints by '{name}', which is not"
      f' among its metrics {sorted(results[first])}: return it, or name another'
      ' metric as its score.'
    )
  return {name: results[first][name]}
