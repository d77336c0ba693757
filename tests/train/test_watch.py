"""A warning comes once when a problem begins, and has the important numbers."""

import numpy as np

from moe.train.watch import DEAD_AFTER, WINDOW, Watch


def see(watch, steps, load=None, dropped=None):
  """Repeats the same record, and returns the warnings."""
  found = []
  for step in steps:
    record = {'step': step}
    if load is not None:
      record['layers'] = {'load': load}
    if dropped is not None:
      record['dropped_fraction'] = dropped
    found += watch.see(record)
  return found


def test_drops_are_reported_once_until_they_have_ended():
  watch = Watch(0.1)
  (said,) = see(watch, range(200), dropped=0.2)
  assert said == (
    '20% of the routed tokens of the last 50 steps were dropped: raise'
    ' CAPACITY_FACTOR or LOAD_BALANCE'
  )
  assert not see(watch, range(WINDOW), dropped=0.0)
  assert len(see(watch, range(200), dropped=0.2)) == 1


def test_drops_below_the_threshold_are_not_reported():
  assert not see(Watch(0.3), range(200), dropped=0.2)


def test_dead_experts_are_reported_by_layer_and_number():
  load = [[0.5, 0.5, 0.0, 0.0], [0.25] * 4]
  said = see(Watch(0.1), range(1, 300), load)
  assert said == [
    'sparse layer 0: experts 2, 3 got no tokens in the last 100 steps: raise'
    ' LOAD_BALANCE'
  ]


def test_one_more_dead_expert_causes_a_warning():
  watch = Watch(0.1)
  see(watch, range(1, 150), [[0.5, 0.5, 0.0]])
  (said,) = see(watch, range(150, 300), [[1.0, 0.0, 0.0]])
  assert 'experts 1, 2 got' in said


def test_an_expert_that_gets_tokens_again_is_no_longer_dead():
  watch = Watch(0.1)
  see(watch, range(1, 150), [[1.0, 0.0]])
  assert watch.dead_LE.tolist() == [[False, True]]
  assert not see(watch, [150], [[0.9, 0.1]])
  assert not watch.dead_LE.any()


def test_loads_that_are_logged_every_eighth_step_span_more_steps():
  (said,) = see(Watch(0.1), range(8, 808, 8), [[1.0, 0.0]])
  assert 'expert 1 got no tokens in the last 793 steps' in said


def test_many_dead_experts_are_counted():
  load = np.zeros((1, 64))
  load[0, 0] = 1.0
  (said,) = see(Watch(0.1), range(1, 101), load.tolist())
  assert 'experts 1, 2, 3, 4, 5, 6, 7, 8 and 55 more got' in said


def test_a_resumed_run_does_not_repeat_its_warnings():
  records = [
    {'step': s, 'layers': {'load': [[1.0, 0.0]]}, 'dropped_fraction': 0.5}
    for s in range(1, DEAD_AFTER + 21)
  ]
  watch = Watch(0.1)
  watch.resume(reversed(records))
  assert watch.dead_LE.tolist() == [[False, True]]
  assert not see(watch, range(121, 140), [[1.0, 0.0]], 0.5)


def test_a_resumed_run_reads_only_the_end_of_its_log():
  read = []

  def records(**entries):
    for step in range(10_000, 0, -1):
      read.append(step)
      yield {'step': step, **entries, **loads(step)}

  loads = lambda step: {}
  Watch(0.1).resume(records())
  assert len(read) == WINDOW  # A dense model has no loads.
  read.clear()
  loads = lambda step: {} if step % 8 else {'layers': {'load': [[1.0, 0.0]]}}
  watch = Watch(0.1)
  watch.resume(records(dead_experts=1))
  assert watch.dead_LE.tolist() == [[False, True]]
  assert len(read) == 8 * (DEAD_AFTER - 1) + 1
