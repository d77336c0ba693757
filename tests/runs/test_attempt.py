"""An attempt at a run ends if it hangs before its loop, and names the cause."""

import functools
import types

import pytest

from moe.data import skips
from moe.runs import attempt, build, preflight
from moe.train import trainer, watchdog
from tests.train import programs
from tests.train.test_watchdog import Ended


class Over(Exception):
  """Ends an attempt after the watchdog has ended it."""


@pytest.mark.parametrize(
  ('place', 'name', 'fragment'),
  [
    (build, 'resumed_state', 'the state has not been made or restored'),
    (attempt, '_compile', 'the step has not been compiled'),
  ],
)
def test_a_hang_before_the_loop_is_named(
  tmp_path, monkeypatch, place, name, fragment
):
  ended = Ended()

  def hang(*_):
    ended.wait()
    raise Over

  ended_by = functools.partial(watchdog.Watchdog, end=ended)
  monkeypatch.setattr(attempt, 'Watchdog', ended_by)
  monkeypatch.setattr(preflight, 'check_disk', lambda *_: None)
  monkeypatch.setattr(build, 'resumed_state', lambda *_: (None, None))
  monkeypatch.setattr(place, name, hang)
  one = attempt.Attempt(
    trainer.Settings(1, hang_seconds=0.5),
    types.SimpleNamespace(
      objective=programs.LANGUAGE, mesh=types.SimpleNamespace(shape={})
    ),
    str(tmp_path),
    {'config.gin': ''},
  )
  reader = types.SimpleNamespace(manifest_hash='', skips=skips.Skips())
  opened = attempt.Opened(
    reader, {}, {}, lambda: types.SimpleNamespace(step=0), lambda: None
  )
  with pytest.raises(Over):
    attempt.train(one, lambda: opened)
  assert ended.codes == [watchdog.EXIT_HUNG]
  assert fragment in (tmp_path / watchdog.STACKS).read_text()
