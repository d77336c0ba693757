"""Trains the runs of a ladder: several models, each at its own learning rate.

An arm is a model. All arms train on the same tokens. First, each arm trains on
a few tokens at several learning rates. If its best rate is the lowest one, it
tries half of this rate; if the best rate is the highest one, it tries twice
this rate; and so on. Then each arm trains on all tokens at its best rate, with
several seeds.

Each run has its own process and its own work directory. So a stopped ladder can
continue later, and several runs can share one device.
"""

import collections
import dataclasses
import logging
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from moe import atomic_files, stop_signals
from moe.runs.arms import Arm
from moe.runs.supervise import EXIT_MISTAKE
from moe.scale import quantities
from moe.train import record_log

_logger = logging.getLogger(__name__)

# Number of learning rates that an arm may try besides the given ones.
MAX_EXTENSIONS = 3
_LOG, _COMMAND, _DIVERGED = 'log.txt', 'command.txt', 'diverged.txt'


class Entry(NamedTuple):
  """One run of a ladder."""

  arm: Arm
  learning_rate: float
  tokens: int
  seed: int


@dataclasses.dataclass(frozen=True)
class Ladder:
  """The settings that determine the runs of a ladder.

  Attributes:
    arms: the models.
    learning_rates: rates that every arm tries; with one rate there is no sweep.
    tokens: training tokens of each run after the sweep.
    sweep_tokens: training tokens of each run of the sweep.
    tokens_per_step: B x T.
    evaluations: number of evaluations, equally spaced, of each run after the
      sweep.
    at_once: number of runs that train at the same time.
  """

  arms: tuple[Arm, ...]
  learning_rates: tuple[float, ...]
  tokens: int
  sweep_tokens: int
  tokens_per_step: int
  evaluations: int = 5
  at_once: int = 1

  def __post_init__(self):
    least = self.evaluations * self.tokens_per_step
    for name in ('tokens', 'sweep_tokens'):
      if getattr(self, name) < least:
        raise ValueError(
          f'--{name}={getattr(self, name):,} must be at least {least:,}, which'
          f' is one step for each of {self.evaluations} evaluations: raise it.'
        )
    for name in ('evaluations', 'at_once'):
      if getattr(self, name) < 1:
        raise ValueError(f'--{name}={getattr(self, name)} must be at least 1.')
    names = [arm.name for arm in self.arms]
    if len(set(names)) != len(names):
      raise ValueError(f'arms must differ in name, got {", ".join(names)}.')
    rates = self.learning_rates
    if not rates or min(rates) <= 0 or len(set(rates)) != len(rates):
      raise ValueError(
        f'--learning_rates={rates} must be different numbers above 0.'
      )

  @property
  def sweep(self) -> list[Entry]:
    """The runs that try the learning rates."""
    if len(self.learning_rates) == 1:
      return []
    return [
      Entry(arm, rate, self.sweep_tokens, 0)
      for arm in self.arms
      for rate in sorted(self.learning_rates)
    ]

  def bindings(self, entry: Entry) -> list[str]:
    """The gin bindings of a run besides the flags of the user."""
    steps = entry.tokens // self.tokens_per_step
    # The sweep needs only the score at the end.
    is_sweep = entry.tokens != self.tokens
    period = steps if is_sweep else steps // self.evaluations
    steps = period * (1 if is_sweep else self.evaluations)
    return [
      *entry.arm.bindings,
      f'LEARNING_RATE={entry.learning_rate:g}',
      f'SEED={entry.seed}',
      f'TRAIN_STEPS={steps}',
      f'WARMUP_STEPS={max(1, round(entry.arm.warmup * steps))}',
      f'EVAL_PERIOD={period}',
      f'SAVE_PERIOD={period}',
    ]


class Tried(NamedTuple):
  """A run of the sweep. Its scores are means over the held-out tasks.

  Attributes:
    learning_rate: its learning rate.
    tokens: training tokens.
    bits_per_char: bits per character; None if the run has diverged.
    nats_per_token: nats per token; None if the run has diverged.
  """

  learning_rate: float
  tokens: int
  bits_per_char: float | None
  nats_per_token: float | None


class Finished(NamedTuple):
  """The results of a ladder, or of its runs that ended before a signal.

  Attributes:
    rates: arm name -> the runs of the sweep, by their learning rates.
    best: arm name -> its best learning rate.
    directories: arm name -> work directories of the runs at the best rate, in
      the order of their seeds. After a signal, only the runs that have ended,
      without the arms that share no seed with the first of them.
    missing: number of runs at the best rates that have not ended.
  """

  rates: dict[str, tuple[Tried, ...]]
  best: dict[str, float]
  directories: dict[str, list[str]]
  missing: int = 0


def run(
  ladder: Ladder, train: Callable[[list[str]], list[str]], workdir: str
) -> Finished:
  """Trains all runs of a ladder that have not ended yet.

  A signal stops the ladder. If two arms can be compared by then, the results
  are those of the runs that have ended.

  Args:
    ladder: the settings that determine the runs.
    train: makes the command of a run from its bindings, without --workdir.
    workdir: directory of the ladder.

  Raises:
    ValueError: if a run ends with an error; if its directory has a run with
      another command; if an arm diverges at each learning rate; or if a run
      diverges at the best rate of its arm.
    stop_signals.Stopped: after a signal, if no two arms have a run of the same
      seed that has ended.
  """
  runner = _Runner(ladder, train, pathlib.Path(workdir))
  swept = list(ladder.sweep)
  runner.run(swept)
  for _ in range(MAX_EXTENSIONS):
    more = [
      Entry(arm, rate, ladder.sweep_tokens, 0)
      for arm in ladder.arms
      if (rate := _next_rate(runner.rates(swept, arm))) is not None
    ]
    if not more:
      break
    runner.run(more)
    swept += more
  rates = {arm.name: runner.rates(swept, arm) for arm in ladder.arms}
  best = {name: _best(ladder, found) for name, found in rates.items()}
  chosen = [
    Entry(arm, best[arm.name], ladder.tokens, seed)
    for seed in range(max(arm.seeds for arm in ladder.arms))
    for arm in ladder.arms
    if seed < arm.seeds
  ]
  try:
    runner.run(chosen)
    ended = chosen
  except stop_signals.Stopped as stop:
    ended = _comparable([e for e in chosen if runner.has_ended(e)])
    if not ended:
      raise
    _logger.info(f'{stop}: the results are those of the runs that have ended')
  missing = sum(not runner.has_ended(entry) for entry in chosen)
  directories = collections.defaultdict(list)
  for entry in ended:
    if runner.result(entry).bits_per_char is None:
      raise ValueError(
        f'{runner.directory(entry)} has diverged at the rate that was best in'
        ' the sweep: remove the directory, and raise --sweep_tokens or lower'
        ' --learning_rates.'
      )
    directories[entry.arm.name].append(str(runner.directory(entry)))
  return Finished(rates, best, dict(directories), missing)


def _comparable(entries: Sequence[Entry]) -> list[Entry]:
  """Runs of the first arm and of arms that share a seed with it; maybe none."""
  seeds = collections.defaultdict(set)
  for entry in entries:
    seeds[entry.arm.name].add(entry.seed)
  first = next(iter(seeds.values()), set())
  found = [entry for entry in entries if seeds[entry.arm.name] & first]
  return found if len({entry.arm.name for entry in found}) > 1 else []


def _scored(rates: Sequence[Tried]) -> list[tuple[float, float]]:
  """(bits per character, learning rate) of the runs that have not diverged."""
  return [
    (run.bits_per_char, run.learning_rate)
    for run in rates
    if run.bits_per_char is not None
  ]


def _best(ladder: Ladder, rates: Sequence[Tried]) -> float:
  """The best rate of a sweep; without a sweep, the only rate."""
  scored = _scored(rates)
  if rates and not scored:
    raise ValueError(
      'every learning rate of an arm has diverged: lower --learning_rates.'
    )
  return min(scored)[1] if scored else ladder.learning_rates[0]


def _next_rate(rates: Sequence[Tried]) -> float | None:
  """The rate to try next; None if the best rate has a neighbour on each side.

  The result is also None if there are no rates.
  """
  if not rates:
    return None
  every = [run.learning_rate for run in rates]
  scored = _scored(rates)
  # `every` includes the rates that diverged, so they count as neighbours.
  best = min(scored)[1] if scored else min(every)
  if best == min(every):
    return best / 2
  return 2 * best if best == max(every) else None


class _Runner:
  """Starts the processes of a ladder's runs."""

  def __init__(
    self,
    ladder: Ladder,
    train: Callable[[list[str]], list[str]],
    workdir: pathlib.Path,
  ):
    self._ladder = ladder
    self._train = train
    self._workdir = workdir

  def directory(self, entry: Entry) -> pathlib.Path:
    """The work directory of a run."""
    tokens = quantities.short(entry.tokens).replace(' ', '')
    name = f'{tokens}_rate_{entry.learning_rate:g}_seed_{entry.seed}'
    return self._workdir / entry.arm.name / name

  def has_ended(self, entry: Entry) -> bool:
    """Whether a run has trained to its end, or has diverged."""
    directory = self.directory(entry)
    return any((directory / n).exists() for n in ('run.json', _DIVERGED))

  def result(self, entry: Entry) -> Tried:
    """The scores of a run at its end."""
    directory = self.directory(entry)
    scores = None, None
    if not (directory / _DIVERGED).exists():
      last = record_log.read(directory / 'eval.jsonl')[-1]['eval'].values()
      scores = (
        statistics.fmean(task[name] for task in last)
        for name in ('bits_per_char', 'cross_entropy')
      )
    return Tried(entry.learning_rate, entry.tokens, *scores)

  def rates(self, entries: Iterable[Entry], arm: Arm) -> tuple[Tried, ...]:
    """The runs of an arm, by their learning rates."""
    found = [self.result(entry) for entry in entries if entry.arm == arm]
    return tuple(sorted(found))

  def run(self, entries: Sequence[Entry]) -> None:
    """Trains the runs that have not ended yet, several at a time."""
    waiting = [entry for entry in entries if not self._is_done(entry)]
    running, stopped = {}, []

    def stop(name: str) -> None:
      stopped.append(name)
      for process, _ in running.values():
        process.terminate()

    with stop_signals.handled(stop, listens=False):
      try:
        self._run(waiting, running, stopped)
      finally:
        # After an error, other runs may still train. Each of them saves a
        # checkpoint before it ends, so the same command continues it.
        for process, _ in running.values():
          process.terminate()
        for process, _ in running.values():
          process.wait()
    if stopped:
      raise stop_signals.Stopped(stopped[0])

  def _run(
    self,
    waiting: list[Entry],
    running: dict[Entry, tuple[subprocess.Popen, float]],
    stopped: list[str],
  ) -> None:
    """Starts the processes, and waits until all have ended.

    Args:
      waiting: runs to start.
      running: run -> (its process, when it started), for processes that have
        not ended.
      stopped: if a signal adds its name, no further run starts.
    """
    total, number = len(waiting), 0
    while running or (waiting and not stopped):
      while waiting and len(running) < self._ladder.at_once and not stopped:
        entry, number = waiting.pop(0), number + 1
        _logger.info(f'run {number} of {total}: {self.directory(entry)}')
        running[entry] = self._start(entry), time.monotonic()
      time.sleep(0.2)
      for entry, (process, begin) in list(running.items()):
        if process.poll() is not None:
          del running[entry]
          if not stopped:
            self._end(entry, process.returncode, time.monotonic() - begin)

  def _is_done(self, entry: Entry) -> bool:
    directory = self.directory(entry)
    path = directory / _COMMAND
    command = '\n'.join(self._command(entry)[1:])
    if not path.exists():
      directory.mkdir(parents=True, exist_ok=True)
      atomic_files.write_file(path, command)
    elif path.read_text(encoding='utf-8') != command:
      raise ValueError(
        f'{path} must hold the command of this ladder, got another one: use'
        ' the same flags and bindings as before, or another --workdir.'
      )
    return self.has_ended(entry)

  def _command(self, entry: Entry) -> list[str]:
    bindings = self._ladder.bindings(entry)
    return [*self._train(bindings), f'--workdir={self.directory(entry)}']

  def _start(self, entry: Entry) -> subprocess.Popen:
    share = 0.9 / self._ladder.at_once
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{share:.2f}'}
    with open(self.directory(entry) / _LOG, 'ab') as log:
      return subprocess.Popen(
        self._command(entry),
        stdout=log,
        stderr=log,
        env={**environment, **os.environ},
      )

  def _end(self, entry: Entry, code: int, seconds: float) -> None:
    """Logs how a run has ended; raises ValueError if it ended with an error."""
    directory = self.directory(entry)
    took = quantities.in_seconds(seconds)
    if code:
      text = (directory / _LOG).read_text(encoding='utf-8', errors='replace')
      last = (text.strip().splitlines() or ['without a word'])[-1]
      if code != EXIT_MISTAKE or 'not finite' not in last:
        raise ValueError(
          f'{directory} has ended with code {code}: {last} (its log is'
          f' {directory / _LOG}; the same command continues the ladder)'
        )
      atomic_files.write_file(directory / _DIVERGED, last)
      _logger.info(f'  diverged after {took}')
      return
    bits = self.result(entry).bits_per_char
    _logger.info(f'  {bits:.4f} bits per character, {took}')
