"""Evaluations between steps: their form, and that on held-out batches."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from moe.objectives.objective import Facts, Measure
from moe.train import ahead
from moe.train import metrics as metrics_lib
from moe.train.program import Program
from moe.train.state import TrainState
from moe.types import Batch


class Evaluation(Protocol):
  """Judges the state of a run between two steps.

  Attributes:
    score: which of its metrics people are shown. If this is the first
      evaluation of a run, that metric ranks checkpoints.
  """

  score: Measure

  def metrics(
    self, program: Program, ts: TrainState, is_stopped: Callable[[], bool]
  ) -> dict[str, Any]:
    """Metrics by name, ready for JSON.

    Args:
      program: of the run.
      ts: the state, which is not changed.
      is_stopped: whether the run is to end at once. What is returned then is
        not used.
    """


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """An evaluation by the terms of the objective itself, on held-out batches.

  Attributes:
    batches: makes an iterator over all of the data.
    score: the number that is added to the means of terms and metrics.
    facts: what the data tells the score.
  """

  batches: Callable[[], Iterator[Batch]]
  score: Measure
  facts: Facts = dataclasses.field(default_factory=dict)

  def metrics(
    self, program: Program, ts: TrainState, is_stopped: Callable[[], bool]
  ) -> dict[str, Any]:
    """Means over all batches, without drops and noise, and the score."""
    mean = metrics_lib.Mean()
    for batch in ahead.each(self.batches(), is_stopped):
      mean.add(program.eval_step(ts, program.put(batch)))
    pairs = mean.pairs()
    if not pairs:
      return {}
    record = metrics_lib.summarize(pairs)
    value = self.score.value(pairs, self.facts)
    return record if value is None else {**record, self.score.name: value}
