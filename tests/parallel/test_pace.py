import pytest

from moe.parallel.pace import WINDOW, Clock, Pace


@pytest.mark.parametrize(
  ('hosts', 'named'),
  [
    ([0.1, 0.1, 0.5], [2]),
    ([0.1, 0.1, 0.19], []),  # 0.19 s are less than twice 0.1 s.
    ([0.001, 0.001, 0.02], []),  # 0.019 s are below a tenth of 0.6 s.
    ([0.5, 0.1], [0]),
    ([0.5, 0.5, 0.5], []),
  ],
)
def test_a_process_that_holds_the_others_up_is_named(hosts, named):
  said = []
  pace = Pace(len(hosts), lambda process, text: said.append(process))
  for process, host in enumerate(hosts):
    assert not said
    pace.add(process, 3, host, 0.6)
  assert said == named


def test_a_process_that_is_behind_is_compared_in_its_own_window():
  said = []
  pace = Pace(2, lambda process, text: said.append((process, text)))
  for window in (0, 1):
    pace.add(0, window, 0.1, 1.0)
  pace.add(1, 0, 0.1, 1.0)
  assert not said
  pace.add(1, 1, 0.9, 1.0)
  ((process, text),) = said
  assert process == 1 and text.endswith(f'(steps {WINDOW + 1} to {2 * WINDOW})')


def test_a_clock_gives_the_median_of_each_window():
  clock = Clock()
  # Step 1 compiles, so it is slow. Steps 21 to 30 do not fill a window.
  found = [clock.add(s, 9.0 if s == 1 else 0.1, 1.0) for s in range(1, 31)]
  assert [i + 1 for i, times in enumerate(found) if times] == [WINDOW]
  assert found[WINDOW - 1] == (0, 0.1, 1.0)
