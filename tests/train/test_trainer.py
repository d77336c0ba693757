import io
import json
import math
import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.checkpoint import listing
from moe.checkpoint.save import Checkpointer
from moe.data.order import Source
from moe.train import ahead, record_log, trainer
from moe.train import reporter as reporter_lib
from moe.train.evaluation import HeldOut
from moe.train.progress import Progress
from tests.train.toy import make_toy_program

POISON = 15
STEPS = 10
SETTINGS = trainer.Settings(
  STEPS, eval_period=4, save_period=3, keep_last=9, max_bad_steps=2
)


def kill(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


@pytest.fixture(scope='module')
def program(toy):
  return make_toy_program(toy)


class Reader:
  """A reader of batches; reading a certain step can trigger an event."""

  facts = {'chars_per_token': 1.5}

  def __init__(self, make_batch, events=None, poisoned=()):
    self.quarantine = []
    self._make_batch = make_batch
    self._events = dict(events or {})
    self._poisoned = poisoned

  def batch(self, step):
    self._events.pop(step, lambda: None)()
    batch = self._make_batch(step)
    if step in self._poisoned:
      batch.tokens[0, 0] = POISON
    return batch

  def sources(self, step):
    halves = np.arange(8).reshape(2, 4)
    return [
      Source(name, 10 * step + rows, rows)
      for name, rows in zip(('poems', 'essays'), halves, strict=True)
    ]


@pytest.fixture
def start(program, make_batch, tmp_path):
  """A function that trains a run; called with the same name, it resumes."""

  def evaluations(events):
    calls = []

    def batches():
      calls.append(None)
      yield make_batch(100)
      events.get(len(calls), lambda: None)()
      yield make_batch(101)

    score = program.objective.score
    return {'held_out': HeldOut(batches, score, {'chars': 80})}

  def run(
    name,
    settings=SETTINGS,
    reader=None,
    eval_events=None,
    evals=True,
    stream=None,
    program=program,
  ):
    workdir = tmp_path / name
    checkpointer = Checkpointer(
      workdir / 'checkpoints',
      settings.keep_last,
      settings.keep_best,
      'bits_per_char',
    )
    ts = program.init()
    if checkpointer.latest_step() is not None:
      ts, _ = checkpointer.restore(None, program.abstract)
    progress = Progress(
      workdir,
      program.objective,
      settings.train_steps,
      int(ts.step),
      stream=stream or io.StringIO(),
    )
    try:
      return trainer.train(
        settings,
        program,
        reader or Reader(make_batch),
        evaluations(eval_events or {}) if evals else {},
        checkpointer,
        progress,
        {'seed': 0},
        ts,
      )
    finally:
      checkpointer.close()
      progress.close()

  return run


@pytest.fixture
def reader(make_batch):
  return lambda *args, **kwargs: Reader(make_batch, *args, **kwargs)


@pytest.fixture
def unbroken(start, tmp_path):
  """The final state of a run that is never interrupted."""
  ts, code = start('unbroken')
  assert code == 0
  return ts


def records(tmp_path, name, log='log.jsonl'):
  """The records of a log without their times."""
  found = record_log.read(tmp_path / name / log)
  return [{k: v for k, v in r.items() if k != 'time'} for r in found]


def steps_saved(tmp_path, name):
  folder = tmp_path / name / 'checkpoints'
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def assert_same_run(tmp_path, name, ts, unbroken):
  """State, log and evaluations must equal those of the unbroken run."""
  jax.tree.map(np.testing.assert_array_equal, ts, unbroken)
  for log in ('log.jsonl', 'eval.jsonl'):
    assert records(tmp_path, name, log) == records(tmp_path, 'unbroken', log)


def test_a_run_goes_to_its_end_and_evaluates_and_saves_at_its_periods(
  unbroken, tmp_path
):
  assert int(unbroken.step) == STEPS
  log = records(tmp_path, 'unbroken')
  assert [r['step'] for r in log] == list(range(1, STEPS + 1))
  assert [r['tokens'] for r in log] == [32 * n for n in range(1, STEPS + 1)]
  assert log[-1]['loss'] < log[0]['loss']
  held_out = records(tmp_path, 'unbroken', 'eval.jsonl')
  assert [r['step'] for r in held_out] == [4, 8, 10]
  assert steps_saved(tmp_path, 'unbroken') == [3, 6, 9, 10]


def test_what_is_saved_is_the_state_after_that_many_steps(
  start, program, make_batch, tmp_path
):
  ts = program.init()
  for step in range(3):
    ts, _ = program.train_step(ts, program.put(make_batch(step)))
  start('run')
  saved, meta = Checkpointer(tmp_path / 'run' / 'checkpoints').restore(
    3, program.abstract
  )
  jax.tree.map(np.testing.assert_array_equal, saved, ts)
  assert meta['seed'] == 0


def test_a_step_that_is_evaluated_and_saved_is_ranked_by_its_score(
  unbroken, tmp_path
):
  meta = tmp_path / 'unbroken' / 'checkpoints' / '10' / 'meta' / 'metadata'
  scores = records(tmp_path, 'unbroken', 'eval.jsonl')[-1]['eval']
  wanted = {'bits_per_char': scores['held_out']['bits_per_char']}
  assert json.loads(meta.read_text())['metrics'] == wanted


def test_held_out_bits_are_all_nats_over_all_characters(
  unbroken, program, make_batch, tmp_path
):
  nats = sum(
    float(
      program.eval_step(unbroken, program.put(make_batch(n)))['cross_entropy'][
        0
      ]
    )
    for n in (100, 101)
  )
  scores = records(tmp_path, 'unbroken', 'eval.jsonl')[-1]['eval']['held_out']
  assert scores['bits_per_char'] == pytest.approx(nats / math.log(2) / 80)
  assert scores['cross_entropy'] == pytest.approx(nats / 64)


def test_without_held_out_data_training_just_ends(start, tmp_path):
  _, code = start('run', evals=False)
  assert code == 0
  assert not (tmp_path / 'run' / 'eval.jsonl').exists()


def test_an_interrupted_run_resumes_bit_for_bit(
  start, reader, unbroken, tmp_path
):
  def fail():
    raise OSError('the disk is gone')

  with pytest.raises(OSError, match='the disk is gone'):
    start('run', reader=reader({7: fail}))
  assert steps_saved(tmp_path, 'run') == [3, 6]
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_saves_and_the_same_command_goes_on_exactly(
  start, reader, unbroken, tmp_path, number
):
  before = signal.getsignal(number)
  ts, code = start('run', reader=reader({5: lambda: kill(number)}))
  assert code == trainer.EXIT_PREEMPTED == 75
  # A thread reads step 5 ahead, so the signal comes in step 5 or just before.
  assert int(ts.step) in (5, 6)
  assert steps_saved(tmp_path, 'run')[-1] == int(ts.step)
  assert [r['step'] for r in records(tmp_path, 'run')][-1] == int(ts.step)
  assert signal.getsignal(number) == before
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


def hang(is_over):
  """Sends a signal, then blocks until `is_over` is set, at most 30 s."""
  kill()
  is_over.wait(30)


@pytest.mark.parametrize('step', [0, 5, 6])
def test_a_signal_ends_a_run_whose_read_hangs(
  start, reader, unbroken, tmp_path, monkeypatch, step
):
  monkeypatch.setattr(ahead, '_SETTLE_SECONDS', 0.0)
  is_over, begin = threading.Event(), time.monotonic()
  ts, code = start('run', reader=reader({step: lambda: hang(is_over)}))
  assert time.monotonic() - begin < 15
  # The state before the hanging read is saved; step 6 was saved already.
  assert (code, int(ts.step)) == (75, step)
  assert steps_saved(tmp_path, 'run')[-1] == step
  is_over.set()
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


def test_a_signal_ends_a_run_whose_held_out_read_hangs(
  start, unbroken, tmp_path, monkeypatch
):
  monkeypatch.setattr(ahead, '_SETTLE_SECONDS', 0.0)
  is_over, begin = threading.Event(), time.monotonic()
  ts, code = start('run', eval_events={1: lambda: hang(is_over)})
  assert time.monotonic() - begin < 15
  assert (code, int(ts.step), steps_saved(tmp_path, 'run')[-1]) == (75, 4, 4)
  is_over.set()
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


@pytest.mark.parametrize(('evaluation', 'step'), [(1, 4), (2, 8), (3, 10)])
def test_an_evaluation_that_sigterm_interrupted_is_repeated(
  start, unbroken, tmp_path, evaluation, step
):
  ts, code = start('run', eval_events={evaluation: kill})
  assert (code, int(ts.step)) == (75, step)
  assert steps_saved(tmp_path, 'run')[-1] == step
  held_out = records(tmp_path, 'run', 'eval.jsonl')
  assert [r['step'] for r in held_out] == [4, 8, 10][: evaluation - 1]
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


def test_a_step_whose_evaluation_was_interrupted_is_still_ranked(
  start, tmp_path
):
  start('run', eval_events={2: kill})
  start('run')
  directory = tmp_path / 'run' / 'checkpoints'
  held_out = {
    r['step']: r['eval']['held_out']['bits_per_char']
    for r in records(tmp_path, 'run', 'eval.jsonl')
  }
  # Steps 4, 8 and 10 are evaluated. 8 is saved by the signal, 10 at the end.
  assert listing.ranking(directory) == sorted((8, 10), key=held_out.get)


@pytest.mark.parametrize('look', [3, 4, 5, 6])
def test_whenever_sigterm_comes_the_named_step_is_saved(
  start, unbroken, tmp_path, monkeypatch, look
):
  # If the loop asked twice for the signal after the evaluation of step 4, the
  # two answers might differ.
  looks = []
  real = trainer._Stop.reached

  def reached(self):
    answer = real(self)
    looks.append(answer)
    if len(looks) == look:
      kill()
    return answer

  monkeypatch.setattr(trainer._Stop, 'reached', reached)
  stream = io.StringIO()
  ts, code = start('run', stream=stream)
  assert code == 75
  assert steps_saved(tmp_path, 'run')[-1] == int(ts.step)
  assert f'SIGTERM: step {int(ts.step)} is saved' in stream.getvalue()
  monkeypatch.undo()
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


def test_the_logs_are_on_the_disk_before_each_checkpoint(start, monkeypatch):
  events, real_save = [], Checkpointer.save

  def save(self, step, *args):
    events.append(step)
    return real_save(self, step, *args)

  monkeypatch.setattr(
    record_log.RecordLog, 'sync', lambda self: events.append('sync')
  )
  monkeypatch.setattr(Checkpointer, 'save', save)
  start('run')
  saves = [place for place, event in enumerate(events) if event != 'sync']
  assert saves and all(events[place - 1] == 'sync' for place in saves)


def test_sigterm_during_the_last_save_does_not_interrupt_it(
  start, unbroken, tmp_path, monkeypatch
):
  unheeded, events = [], {}
  before = signal.signal(signal.SIGTERM, lambda *_: unheeded.append(1))
  real_save, real_wait = Checkpointer.save, Checkpointer.wait

  def save(self, step, *args):
    real_save(self, step, *args)
    if step == STEPS:
      events['next wait'] = kill

  def wait(self):
    events.pop('next wait', lambda: None)()
    real_wait(self)

  monkeypatch.setattr(Checkpointer, 'save', save)
  monkeypatch.setattr(Checkpointer, 'wait', wait)
  try:
    ts, code = start('run')
  finally:
    signal.signal(signal.SIGTERM, before)
  assert (code, unheeded, events) == (0, [], {})
  assert_same_run(tmp_path, 'run', ts, unbroken)


def test_a_bad_record_is_reported_at_its_step(start, reader, tmp_path):
  bad = {'file': 'a', 'record': 7, 'error': 'hash mismatch'}
  source = reader()
  source._events = {4: lambda: source.quarantine.append(bad)}
  stream = io.StringIO()
  start('run', trainer.Settings(8), source, evals=False, stream=stream)
  assert records(tmp_path, 'run', 'quarantine.jsonl') == [{'step': 5, **bad}]
  assert 'warning: step 5 left its row empty' in stream.getvalue()


def test_a_bad_record_is_reported_when_it_ends_the_run(start, reader, tmp_path):
  bad = {'file': 'a', 'record': 7, 'error': 'hash mismatch'}
  source = reader()

  def fail():
    source.quarantine.append(bad)
    raise ValueError('at most 0 records may be unreadable')

  source._events = {4: fail}
  with pytest.raises(ValueError, match='at most 0 records'):
    start('run', reader=source)
  assert records(tmp_path, 'run', 'quarantine.jsonl') == [{'step': 5, **bad}]


def test_tokens_leave_out_padding(start, make_batch, tmp_path):
  class Padded(Reader):
    def batch(self, step):
      batch = super().batch(step)
      batch.segment_ids[:, 3:] = 0
      batch.loss_weights[:, 2:] = 0  # Token 2 is read but not scored.
      return batch

  start('run', trainer.Settings(2), Padded(make_batch), evals=False)
  # Each of the eight rows has three tokens in four places.
  assert [r['tokens'] for r in records(tmp_path, 'run')] == [24, 48]


def test_training_time_leaves_out_evaluation_alone(
  start, reader, tmp_path, monkeypatch
):
  clock = [0.0]
  monkeypatch.setattr(reporter_lib.time, 'perf_counter', lambda: clock[0])

  def passes(seconds):
    clock[0] += seconds

  real = Checkpointer.save

  def save(self, *args):
    passes(10.0)
    real(self, *args)

  monkeypatch.setattr(Checkpointer, 'save', save)
  wait = {n: lambda: passes(1000.0) for n in range(1, 4)}
  start('run', eval_events=wait)
  log = (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()
  times = [json.loads(line)['time'] for line in log]
  # Each save takes 10 s; saves come after steps 3, 6 and 9, and at the end.
  assert [t['seconds'] for t in times] == [0, 0, 0, 10, 0, 0, 10, 0, 0, 10]
  assert times[-1]['elapsed'] == 30


def test_an_evaluation_that_is_interrupted_twice_is_repeated(
  start, unbroken, tmp_path
):
  start('run', eval_events={1: kill})
  ts, code = start('run', eval_events={1: kill})
  assert (code, int(ts.step)) == (75, 4)
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


def test_a_run_that_has_ended_does_nothing_more(start, unbroken, tmp_path):
  shutil.copytree(tmp_path / 'unbroken', tmp_path / 'run')
  ts, code = start('run')
  assert code == 0
  assert_same_run(tmp_path, 'run', ts, unbroken)


def test_single_bad_steps_are_skipped_and_training_goes_on(
  start, reader, tmp_path
):
  ts, code = start('run', reader=reader(poisoned=(2, 4)))
  assert code == 0
  assert np.all(np.isfinite(ts.params['w']))
  log = records(tmp_path, 'run')
  assert [r['step'] for r in log if r['skipped']] == [3, 5]
  assert [r['step'] for r in log if r['loss'] is None] == [3, 5]


def test_a_bad_step_names_its_records_and_the_loss_of_each_source(
  start, reader, tmp_path
):
  start('run', reader=reader(poisoned=(2, 4)))
  first, second = records(tmp_path, 'run', 'bad_steps.jsonl')
  assert [first['step'], second['step']] == [3, 5]
  poems, essays = first['sources']
  # The poisoned token is in row 0. So the other half of the batch has a loss.
  assert poems == {'source': 'poems', 'records': [20, 21, 22, 23], 'loss': None}
  assert essays['source'] == 'essays' and essays['records'][0] == 24
  assert 0 < essays['loss'] < 100


def test_bad_steps_in_a_row_end_the_run(start, reader, tmp_path):
  with pytest.raises(reporter_lib.TrainingError) as error:
    start('run', reader=reader(poisoned=range(4, 20)))
  assert 'for 2 steps up to step 6' in str(error.value)
  assert 'LEARNING_RATE' in str(error.value)
  assert f'checkpoint rewind {tmp_path}/run --to=' in str(error.value)
  assert '--skip=5:7`' in str(error.value)
  assert [r['step'] for r in records(tmp_path, 'run', 'bad_steps.jsonl')] == [
    5,
    6,
  ]
  assert records(tmp_path, 'run')[-1]['step'] == 6


def test_a_bad_step_leaves_no_trace_in_what_is_saved(
  start, reader, program, tmp_path
):
  with pytest.raises(reporter_lib.TrainingError):
    start('run', reader=reader(poisoned=range(5, 20)))
  with_bad, _ = Checkpointer(tmp_path / 'run' / 'checkpoints').restore(
    6, program.abstract
  )
  start('five', trainer.Settings(5))
  without, _ = Checkpointer(tmp_path / 'five' / 'checkpoints').restore(
    5, program.abstract
  )
  assert int(with_bad.step) == 6
  jax.tree.map(
    np.testing.assert_array_equal, with_bad._replace(step=without.step), without
  )


def test_a_state_that_an_update_has_broken_is_never_saved(
  start, toy, tmp_path, program
):
  # Loss and gradient of step 5 are finite, but the update overflows.
  rate = lambda step: jnp.where(step < 4, 0.1, 1e38)
  broken = make_toy_program(toy, rate)
  settings = trainer.Settings(STEPS, save_period=1, keep_last=9)
  with pytest.raises(
    reporter_lib.TrainingError, match='Step 5 .* is not saved'
  ):
    start('run', settings, evals=False, program=broken)
  assert steps_saved(tmp_path, 'run') == [1, 2, 3, 4]
  log = records(tmp_path, 'run')
  assert [(r['step'], r['skipped']) for r in log[3:]] == [(4, 0), (5, 0)]


@pytest.mark.parametrize(
  ('values', 'fragment'),
  [
    ({'train_steps': 0}, 'TRAIN_STEPS=0 must be at least 1'),
    ({'drop_warning': 0.0}, 'DROP_WARNING=0.0 must be above 0'),
    ({'eval_period': -1}, 'EVAL_PERIOD=-1 must be at least 0'),
    ({'save_period': 0}, 'SAVE_PERIOD=0 must be at least 1'),
    ({'num_microbatches': 0}, 'NUM_MICROBATCHES=0'),
    ({'keep_last': 0}, 'KEEP_LAST=0'),
    ({'max_bad_steps': 0}, 'MAX_BAD_STEPS=0'),
    ({'profile_steps': (3,)}, r'PROFILE_STEPS=\(3,\)'),
    ({'profile_steps': (4, 3)}, r'PROFILE_STEPS=\(4, 3\)'),
    ({'profile_steps': (4, 10)}, 'below TRAIN_STEPS=10'),
  ],
)
def test_settings_that_make_no_sense_are_refused(values, fragment):
  with pytest.raises(ValueError, match=fragment):
    trainer.Settings(**{'train_steps': STEPS, **values})


@pytest.mark.parametrize(
  ('first', 'calls'),
  [
    (0, [(4, 'start'), (6, 'busy'), (6, 'stop')]),
    # A run that resumes between the first and the last traced step traces the
    # rest.
    (5, [(5, 'start'), (6, 'busy'), (6, 'stop')]),
    (6, []),
  ],
)
def test_the_profiler_traces_the_steps_asked_for(
  start, program, tmp_path, monkeypatch, first, calls
):
  if first:
    start('run', trainer.Settings(first), evals=False)
  found, done = [], [first]
  profiler = jax.profiler
  note = lambda what: lambda *_: found.append((done[0], what))
  monkeypatch.setattr(trainer.processes, 'tell_busy', note('busy'))
  monkeypatch.setattr(profiler, 'start_trace', note('start'))
  monkeypatch.setattr(profiler, 'stop_trace', note('stop'))
  real = reporter_lib.Reporter.step_started

  def step_started(self, step, *args):
    done[0] = step
    real(self, step, *args)

  monkeypatch.setattr(reporter_lib.Reporter, 'step_started', step_started)
  start('run', trainer.Settings(8, profile_steps=(4, 6)), evals=False)
  assert found == calls
