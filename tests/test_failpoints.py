"""A request to fail takes effect at its place, and at the requested time."""

import errno
import pathlib
import re
import signal

import pytest

from moe import failpoints

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def ask(monkeypatch):
  """A function that sets the request. The counts of all places start from 0."""
  failpoints._reached.clear()
  return lambda text: monkeypatch.setenv(failpoints.VARIABLE, text)


def test_without_a_request_a_place_does_nothing(ask, monkeypatch):
  monkeypatch.delenv(failpoints.VARIABLE, raising=False)
  failpoints.reach('commit.sealed')
  assert not failpoints._reached


def test_an_error_is_raised_at_its_place_and_time_alone(ask):
  ask('log.append=EROFS,commit.sealed=ENOSPC@2')
  failpoints.reach('commit.sealed')
  with pytest.raises(OSError, match='No space left') as error:
    failpoints.reach('commit.sealed')
  assert error.value.errno == errno.ENOSPC
  failpoints.reach('commit.sealed')
  with pytest.raises(OSError, match='Read-only'):
    failpoints.reach('log.append')


def test_a_signal_is_sent_to_the_process(ask):
  ask('run.step=term')
  seen = []
  before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
  try:
    failpoints.reach('run.step')
  finally:
    signal.signal(signal.SIGTERM, before)
  assert seen == [signal.SIGTERM]


@pytest.mark.parametrize(
  ('text', 'fragment'),
  [
    ('commit.seald=kill', 'must name one of these places: run.start'),
    ('commit.sealed', 'must be PLACE=ACTION'),
    ('commit.sealed=burn', 'must be PLACE=ACTION'),
    ('commit.sealed=kill@x', 'must end in a number'),
  ],
)
def test_a_request_that_makes_no_sense_is_an_error(ask, text, fragment):
  ask(text)
  with pytest.raises(ValueError, match=fragment):
    failpoints.reach('run.start')


def test_every_place_is_reached_once_in_the_code_or_more_often():
  text = ''.join(p.read_text() for p in sorted((ROOT / 'moe').rglob('*.py')))
  reached = set(re.findall(r"failpoints\.reach\('([\w.]+)'\)", text))
  assert reached == set(failpoints.PLACES)
