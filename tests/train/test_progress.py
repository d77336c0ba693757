"""Logs survive a kill; the terminal shows progress and warnings."""

import io
import json
import struct

import numpy as np
import pytest

from moe.train import progress, record_log
from tests.train import programs

TOTAL = 40
OBJECTIVE = programs.LANGUAGE
SCORES = {'valid': OBJECTIVE.score}


class Terminal(io.StringIO):
  def isatty(self):
    return True


def metrics(step, dropped=0.0, load=((0.5, 0.5), (0.75, 0.25))):
  return {
    'tokens': 1000,
    'loss': 5.0 / step,
    'bits_per_char': 8.0 / step,
    'dropped_fraction': dropped,
    'load_imbalance': 1.25,
    'skipped': 0.0,
    'layers': {'load': [list(row) for row in load]},
  }


def run(workdir, steps, resume=0, seconds=0.5, **options):
  """Logs the steps as a training loop does; returns the terminal's text."""
  stream = options.pop('stream', io.StringIO())
  shown = progress.Progress(
    workdir, OBJECTIVE, TOTAL, resume, stream=stream, **options
  )
  for step in steps:
    shown.step(step, metrics(step), seconds)
  shown.close()
  return stream.getvalue()


def timeless(path):
  records = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in r.items() if k != 'time'} for r in records]


def scalars(directory, tag):
  """Step -> value, as TensorBoard shows them, without the purged steps."""
  from tensorboardX.proto.event_pb2 import Event

  found = {}
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while len(data) > 8:
      (length,) = struct.unpack('<Q', data[:8])
      if len(data) < 16 + length:
        break  # A killed run may leave a part of an event, which nobody reads.
      event, data = (
        Event.FromString(data[12 : 12 + length]),
        data[16 + length :],
      )
      if event.HasField('session_log'):
        found = {k: v for k, v in found.items() if k < event.step}
      for value in event.summary.value:
        if value.tag == tag:
          assert event.step not in found
          found[event.step] = value.simple_value
  return found


def test_a_record_has_the_numbers_of_the_step_and_its_time_apart(
  tmp_path,
):
  run(tmp_path, [1], seconds=0.5, unit_seconds=1e-4)
  (record,) = record_log.read(tmp_path / 'log.jsonl')
  assert record['step'] == 1
  assert record['loss'] == 5.0
  assert record['layers']['load'] == [[0.5, 0.5], [0.75, 0.25]]
  # A step has 1000 tokens and takes 0.5 s. At the peak of the chip it would
  # take 0.1 s. 39 steps are left.
  assert record['time'] == {
    'seconds': 0.5,
    'tokens_per_second': 2000.0,
    'mfu': 0.2,
    'elapsed': 0.5,
    'eta': 19.5,
  }


def test_a_killed_and_resumed_log_equals_the_unbroken_one(tmp_path):
  run(tmp_path / 'whole', range(1, 21))
  run(tmp_path / 'killed', range(1, 15), seconds=0.7)
  with open(tmp_path / 'killed' / 'log.jsonl', 'a') as file:
    file.write('{"step": 15, "loss": 0.')
  run(tmp_path / 'killed', range(11, 21), resume=10)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert timeless(killed / 'log.jsonl') == timeless(whole / 'log.jsonl')
  last = record_log.read(killed / 'log.jsonl')[-1]
  assert last['time']['elapsed'] == pytest.approx(10 * 0.7 + 10 * 0.5)


def test_a_resumed_run_continues_the_token_count_of_the_log(tmp_path):
  def part(workdir, steps, resume=0):
    shown = progress.Progress(
      workdir, OBJECTIVE, TOTAL, resume, stream=io.StringIO()
    )
    for step in steps:
      shown.step(step, {**metrics(step), 'tokens': 1000 - step}, 0.5)
    shown.close()
    return [r['tokens'] for r in record_log.read(workdir / 'log.jsonl')]

  # The numbers are the sums of 999, 998, 997 and 996 up to each step.
  assert part(tmp_path / 'whole', range(1, 5)) == [999, 1997, 2994, 3990]
  part(tmp_path / 'killed', range(1, 4))
  assert part(tmp_path / 'killed', [3, 4], 2) == [999, 1997, 2994, 3990]


def bad_record(number):
  return {'file': 'a', 'record': number, 'error': 'hash mismatch'}


def test_a_record_that_cannot_be_read_is_reported_once(tmp_path):
  stream = io.StringIO()
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=stream)
  for step, numbers in ((1, []), (3, [7]), (4, [7]), (6, [7, 5])):
    shown.quarantine(step, [bad_record(number) for number in numbers])
  shown.close()
  assert stream.getvalue().splitlines() == [
    'warning: step 3 left its row empty: record 7 of a: hash mismatch',
    'warning: step 6 left its row empty: record 5 of a: hash mismatch',
  ]
  assert record_log.read(tmp_path / 'quarantine.jsonl') == [
    {'step': 3, **bad_record(7)},
    {'step': 6, **bad_record(5)},
  ]


def test_a_log_without_a_record_has_no_file(tmp_path):
  run(tmp_path, range(1, 3))
  assert not (tmp_path / 'quarantine.jsonl').exists()
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  shown.quarantine(2, [bad_record(7)])
  shown.close()
  run(tmp_path, [2], resume=1)  # The record was found after the restored step.
  assert not (tmp_path / 'quarantine.jsonl').exists()


def test_a_resumed_run_reports_no_bad_record_twice(tmp_path):
  for resume, steps in ((0, (3, 6)), (5, (6, 8))):
    shown = progress.Progress(
      tmp_path, OBJECTIVE, TOTAL, resume, stream=io.StringIO()
    )
    # A new reader does not know the bad records, and finds them again.
    for step, found in zip(steps, ([7], [7, 5]), strict=True):
      shown.quarantine(step, [bad_record(number) for number in found])
    shown.close()
  assert record_log.read(tmp_path / 'quarantine.jsonl') == [
    {'step': 3, **bad_record(7)},
    {'step': 8, **bad_record(5)},
  ]


def test_bad_records_of_all_processes_are_listed_before_a_save(
  tmp_path, monkeypatch
):
  others = [{'step': 2, **bad_record(9)}, {'step': 4, **bad_record(7)}]
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr(
    progress.multihost, 'gathered', lambda own: [*own, *others]
  )
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  shown.quarantine(3, [bad_record(7)])
  shown.sync()
  shown.sync()
  assert record_log.read(tmp_path / 'quarantine.jsonl') == [
    {'step': 2, **bad_record(9)},
    {'step': 3, **bad_record(7)},
  ]
  shown.quarantine(5, [bad_record(8)])
  shown.close()  # The others may have ended.
  last = record_log.read(tmp_path / 'quarantine.jsonl')[-1]
  assert last == {'step': 5, **bad_record(8)}


def test_a_new_run_in_a_directory_without_checkpoint_starts_the_log(tmp_path):
  run(tmp_path, range(1, 4))
  run(tmp_path, range(1, 3))
  assert [r['step'] for r in record_log.read(tmp_path / 'log.jsonl')] == [1, 2]


def test_evaluations_after_the_restored_step_are_removed_too(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  for step in (10, 20):
    shown.evaluation(step, {'valid': {'bits_per_char': 7.0}}, SCORES)
  shown.close()
  stream = io.StringIO()
  shown = progress.Progress(
    tmp_path, OBJECTIVE, TOTAL, resume_step=10, stream=stream
  )
  assert shown.has_evaluation(10)
  assert not shown.has_evaluation(20)
  shown.evaluation(20, {'valid': {'bits_per_char': 6.5}}, SCORES)
  shown.close()
  assert record_log.read(tmp_path / 'eval.jsonl') == [
    {'step': 10, 'eval': {'valid': {'bits_per_char': 7.0}}},
    {'step': 20, 'eval': {'valid': {'bits_per_char': 6.5}}},
  ]
  assert 'step 20: valid 6.5000 bits/char held out' in stream.getvalue()


def test_a_log_that_ends_before_the_restored_step_is_reported(tmp_path):
  run(tmp_path, range(1, 6))
  assert 'lacks steps 6 to 8' in run(tmp_path, [9], resume=8)


def test_numpy_and_non_finite_numbers_become_plain_json(tmp_path):
  log = record_log.RecordLog(tmp_path / 'a.jsonl', 0)
  log.append({'step': 1, 'a': np.float32(0.5), 'b': [float('nan'), np.inf]})
  log.append({'step': 2, 'c': np.array([[1, 2]])})
  log.close()
  assert (tmp_path / 'a.jsonl').read_text().splitlines() == [
    '{"step": 1, "a": 0.5, "b": [null, null]}',
    '{"step": 2, "c": [[1, 2]]}',
  ]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  log = record_log.RecordLog(tmp_path / 'log', 0)
  monkeypatch.setattr(record_log.os, 'write', full)
  with pytest.raises(ValueError, match='"No space left on device" at step 3'):
    log.append({'step': 3})


def test_the_loads_of_a_big_model_are_logged_less_often(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  layers = {'load': np.ones((4, 2048)) / 2048}
  for step in range(1, 9):
    shown.step(step, {'tokens': 1000, 'layers': layers}, 0.1)
  shown.close()
  records = record_log.read(tmp_path / 'log.jsonl')
  assert [r['step'] for r in records if 'layers' in r] == [4, 8]


def test_tensorboard_has_each_step_once_after_a_kill(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  for step in range(1, 9):
    shown.step(step, metrics(step), 0.1)
  shown.evaluation(4, {'valid': {'bits_per_char': 7.5}}, SCORES)
  del shown  # Lines that were not flushed are lost, as after a kill.
  run(tmp_path, range(6, 11), resume=5)
  found = scalars(tmp_path / 'tensorboard', 'train/loss')
  assert found == pytest.approx({step: 5.0 / step for step in range(1, 11)})
  found = scalars(tmp_path / 'tensorboard', 'eval/valid/bits_per_char')
  assert found == {4: 7.5}


def test_each_evaluation_adds_a_heat_map_of_the_loads(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  record = metrics(1)
  layers = record['layers']
  record['layers'] = {**layers, 'load_text': layers['load']}
  shown.step(1, record, 0.1)
  shown.evaluation(1, {'valid': {'bits_per_char': 7.5}}, SCORES)
  shown.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  found = path.read_bytes()
  assert b'expert_load' in found and b'expert_load_text' in found


def test_without_a_terminal_there_are_few_plain_lines(tmp_path):
  seen = run(tmp_path, range(1, TOTAL + 1)).splitlines()
  assert seen == [
    'step 1/40 (2%, 0:20 left)  total loss 5.000  8.000 bits/char'
    '  2k tokens/s  dropped 0.0%  imbalance 1.25',
    'step 40/40 (100%, 0:00 left)  total loss 0.125  0.200 bits/char'
    '  2k tokens/s  dropped 0.0%  imbalance 1.25',
  ]


def test_a_terminal_that_cannot_draw_a_line_again_gets_plain_ones(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('TERM', 'dumb')
  seen = run(tmp_path, range(1, TOTAL + 1), stream=Terminal()).splitlines()
  assert [line[:9] for line in seen] == ['step 1/40', 'step 40/4']


def test_on_a_terminal_there_is_one_live_line(tmp_path, monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  seen = run(tmp_path, range(1, TOTAL + 1), stream=Terminal())
  assert '\x1b[2K' in seen  # This code clears the line before a new one.
  assert 'step 40/40' in seen
  assert seen.rindex('step 40/40') > seen.rindex('step 1/40')
  assert seen.count('\n') < TOTAL / 2


def test_a_warning_is_shown_when_it_begins(tmp_path):
  stream = io.StringIO()
  shown = progress.Progress(
    tmp_path, OBJECTIVE, 1000, drop_warning=0.3, stream=stream
  )
  for step in range(1, 130):
    load = ((0.5, 0.5), (1.0, 0.0))
    shown.step(step, metrics(step, 0.2 + 0.2 * (step > 60), load), 0.1)
  shown.close()
  seen = stream.getvalue()
  assert seen.count('warning: sparse layer 1: expert 1 got no tokens') == 1
  assert seen.count('of the routed tokens') == 1
  assert 'dead experts 1' in seen.splitlines()[-1]
  dead = [r['dead_experts'] for r in record_log.read(tmp_path / 'log.jsonl')]
  assert dead == [0] * 99 + [1] * 30


def test_dead_experts_are_counted_across_a_kill(tmp_path):
  def part(workdir, steps, resume=0):
    shown = progress.Progress(
      workdir, OBJECTIVE, TOTAL, resume, stream=io.StringIO()
    )
    for step in steps:
      shown.step(step, metrics(step, load=((1.0, 0.0),)), 0.1)
    shown.close()

  part(tmp_path / 'whole', range(1, 121))
  part(tmp_path / 'killed', range(1, 95))
  part(tmp_path / 'killed', range(91, 121), resume=90)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert timeless(killed / 'log.jsonl') == timeless(whole / 'log.jsonl')
  assert timeless(whole / 'log.jsonl')[-1]['dead_experts'] == 1


def test_tensorboard_has_numbers_by_layer_every_tenth_step(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=io.StringIO())
  for step in range(1, 25):
    record = metrics(step)
    record['layers']['entropy'] = [0.5, step / 100]
    shown.step(step, record, 0.1)
  shown.close()
  found = scalars(tmp_path / 'tensorboard', 'router_entropy/layer_1')
  assert found == pytest.approx({10: 0.1, 20: 0.2})


def test_a_long_run_draws_its_loads_without_an_evaluation(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(progress, '_IMAGE_SECONDS', -1.0)
  run(tmp_path, [1])
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert b'expert_load' in path.read_bytes()


def test_a_skipped_step_is_reported_in_words(tmp_path):
  stream = io.StringIO()
  shown = progress.Progress(tmp_path, OBJECTIVE, TOTAL, stream=stream)
  shown.step(3, {'tokens': 1000, 'loss': float('nan'), 'skipped': 1.0}, 0.1)
  shown.close()
  assert 'step 3 was skipped, its loss or gradient was not' in stream.getvalue()


def test_a_step_costs_little(tmp_path):
  import time

  shown = progress.Progress(tmp_path, OBJECTIVE, 10**6, stream=io.StringIO())
  record = metrics(1, load=np.ones((8, 16)) / 16)
  shown.step(1, record, 0.1)
  start = time.perf_counter()
  for step in range(2, 202):
    shown.step(step, record, 0.1)
  assert (time.perf_counter() - start) / 200 < 0.01
  shown.close()
