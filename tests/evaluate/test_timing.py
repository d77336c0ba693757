"""Timing programs in turn, and the ratios of their times."""

import pytest

from moe.evaluate import timing
from moe.evaluate.timing import Timed, measure


def playing(name, *seconds):
  """A fake program whose samples take the given seconds."""
  return Timed(name, iter(seconds).__next__)


def test_a_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
  # The ratios of times in the three rounds are 3, 1 and 2, with the median 2.
  # The ratios of speeds are 1/3, 1 and 1/2, with the median 1/2. The medians of
  # the times are 4 and 6, with the ratio 1.5.
  ours, theirs = (2.0, 4.0, 8.0), (6.0, 4.0, 16.0)
  report = measure([playing('a', *ours), playing('b', *theirs)], 3, '')
  assert report['ratio'] == 2.0
  assert report['spread'] == [1.5, 2.5]
  speed = measure([playing('a', *ours), playing('b', *theirs)], 3, '', 24, True)
  assert speed['ratio'] == 0.5
  assert speed['tokens_per_second'] == 24 / 6


def test_the_interval_of_a_median_is_of_values_that_lie_far_enough_in():
  # Of ten values, at most one lies below the median with probability 11 / 1024
  # = 1.1%, and at most two with 56 / 1024 = 5.5%. The limit is 2.5%, so the
  # ends of the interval are the second value from each side.
  assert timing.median_interval([float(x) for x in range(10)]) == [1.0, 8.0]
  # Of six values, none lies below the median with probability 1 / 64 = 1.6%.
  # For five values this is 1 / 32 = 3.1%, so there is no interval.
  assert timing.median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == [1.0, 6.0]
  assert timing.median_interval([1.0] * 5) is None


def test_scores_tell_times_speeds_ratios_and_drops():
  slow, fast = [2.0] * 6, [1.0] * 6
  programs = [playing('a', *slow), playing('b', *fast)._replace(dropped=0.25)]
  scores = timing.scores_of(measure(programs, 6, '', 8, True), 'c')
  assert [(s.name, s.unit, s.value, s.is_higher_better) for s in scores] == [
    ('a', 'seconds', 2.0, False),
    ('a', 'tokens/s', 4.0, True),
    ('b', 'seconds', 1.0, False),
    ('b', 'tokens/s', 8.0, True),
    ('speed of b over a', 'times', 2.0, True),
    ('b', 'dropped share', 0.25, False),
  ]
  assert {(s.n, s.command) for s in scores} == {(6, 'c')}
  assert scores[3].low == scores[3].high == 8.0


def test_what_people_read_is_the_table_of_scores(capsys):
  report = measure([playing('a', 2.0)], 1, 'step')
  timing.show(report | {'device': 'cpu'}, False, 'c')
  table = timing.score.as_table(timing.scores_of(report, 'c'))
  assert capsys.readouterr().out == f'{table}\nunit: step\ndevice: cpu\n'


def test_programs_take_turns():
  order = []
  programs = [
    Timed(name, lambda name=name: order.append(name) or 1.0) for name in 'ab'
  ]
  measure(programs, 2, '')
  assert ''.join(order) == 'abab'


def test_the_best_speed_of_another_program_counts():
  sample = timing.command(
    'echo eager: 1.0M parameters, 20 tokens/s; echo grouped: 40 tokens/s;'
    ' echo slow: 1e1 tokens/s',
    tokens=80,
  )
  assert sample() == 2.0


@pytest.mark.parametrize(
  'command', ['echo 5 tokens/s; exit 3', 'echo no speed at all']
)
def test_another_program_that_fails_is_an_error(command):
  with pytest.raises(ValueError, match="must succeed and print 'N tokens/s'"):
    timing.command(command, tokens=1)()
