"""The protocol of evaluations between steps; an evaluation on held-out data."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from moe import failpoints
from moe.objectives.objective import Facts, Measure
from moe.train import ahead
from moe.train import metrics as metrics_lib
from moe.train.program import Program
from moe.train.state import TrainState
from moe.types import Batch


class Evaluation(Protocol):
  """Evaluates the state of a run between two steps.

  Attributes:
    score: the metric that is shown to people. The score of the first evaluation
      of a run ranks checkpoints.
  """

  score: Measure

  def metrics(
    self, program: Program, ts: TrainState, is_stopped: Callable[[], bool]
  ) -> dict[str, Any]:
    """Metrics by name, ready for JSON.

    Args:
      program: program of the run.
      ts: training state; the evaluation does not change it.
      is_stopped: () -> whether the run must end at once. The caller then
        ignores the result.
    """


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Evaluates the terms of the objective on held-out batches.

  Attributes:
    batches: makes an iterator over all of the data.
    score: number that is reported besides the means of terms and metrics.
    facts: what the score needs to know about the data.
  """

  batches: Callable[[], Iterator[Batch]]
  score: Measure
  facts: Facts = dataclasses.field(default_factory=dict)

  def metrics(
    self, program: Program, ts: TrainState, is_stopped: Callable[[], bool]
  ) -> dict[str, Any]:
    """Means over all batches, and the score.

    Routers drop no token and add no noise.
    """
    mean = metrics_lib.Mean()
    for batch in ahead.each(self.batches(), is_stopped):
      failpoints.reach('run.evaluate')
      mean.add(program.eval_step(ts, program.put(batch)))
    pairs = mean.pairs()
    if not pairs:
      return {}
    record = metrics_lib.summarize(pairs)
    value = self.score.value(pairs, self.facts)
    return record if value is None else {**record, self.score.name: value}
