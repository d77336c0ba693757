"""Timing programs in turn, and the ratios of their times."""

import pytest

from launch.benchmarks import timing
from launch.benchmarks.timing import Timed, measure


def playing(name, *seconds):
  """A fake program whose samples take the given seconds."""
  return Timed(name, iter(seconds).__next__)


def test_a_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
  # The ratios within rounds are 2, 3 and 1; those of speeds are 1/2, 1/3 and 1.
  ours, theirs = (2.0, 4.0, 8.0), (4.0, 12.0, 8.0)
  report = measure([playing('a', *ours), playing('b', *theirs)], 3, '')
  assert report['ratio'] == 2.0
  assert report['spread'] == [1.5, 2.5]
  # Now they are 3, 3 and 1.
  slow = (2.0, 4.0, 100.0), (6.0, 12.0, 100.0)
  report = measure([playing('a', *slow[0]), playing('b', *slow[1])], 3, '')
  assert report['ratio'] == 3.0
  speed = measure([playing('a', *ours), playing('b', *theirs)], 3, '', 24, True)
  assert speed['ratio'] == 0.5
  assert speed['tokens_per_second'] == 24 / 8


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
