import pytest

from moe.scale import hlo, hlo_loops
from tests.scale.programs import LOOPS


@pytest.fixture(scope='module')
def module():
  return hlo.parse(LOOPS)


def test_nested_loops_are_multiplied_out(module):
  # The outer loop counts 0, 2, 4, and each iteration runs the inner one 4
  # times.
  times = {i.name: n for _, i, n in hlo_loops.executed(module)}
  assert times['while.3'] == 3
  assert times['f'] == 12
  assert times['y.4'] == 1
  assert not hlo_loops.loops_of_unknown_length(module)


def test_an_annotated_trip_count_is_used():
  text = LOOPS.replace(
    'body=%outer', 'body=%outer, backend_config={"known_trip_count":{"n":"5"}}'
  )
  times = {i.name: n for _, i, n in hlo_loops.executed(hlo.parse(text))}
  assert times['f'] == 20


def test_a_loop_of_unknown_length_is_named_and_counts_once():
  module = hlo.parse(LOOPS.replace('constant(6)', 'custom-call()'))
  assert hlo_loops.loops_of_unknown_length(module) == ['while.4']
  times = {i.name: n for _, i, n in hlo_loops.executed(module)}
  assert times['f'] == 4
