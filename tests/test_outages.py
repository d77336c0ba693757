"""Failures that may pass are told from the user's mistakes."""

import errno
import os

import pytest

from moe import outages


def raised(error, cause=None):
  try:
    raise error from cause
  except type(error) as found:
    return found


@pytest.mark.parametrize(
  ('number', 'is_outage'),
  [
    (errno.EIO, True),
    (errno.ESTALE, True),
    (errno.ETIMEDOUT, True),
    (errno.ENOTCONN, True),
    (errno.ENOSPC, False),
    (errno.EROFS, False),
    (errno.EACCES, False),
    (errno.ENOENT, False),
  ],
)
def test_the_system_error_decides(number, is_outage):
  cause = OSError(number, os.strerror(number))
  assert outages.is_outage(cause) == is_outage
  assert outages.is_outage(raised(ValueError('no save'), cause)) == is_outage
  text = f"UNAVAILABLE: Failed to write [os_error_code='{number}']"
  assert outages.is_outage(raised(ValueError('x'), ValueError(text))) == (
    is_outage
  )


def test_an_error_without_a_cause_in_the_system_is_a_mistake():
  assert not outages.is_outage(ValueError('SEED=x must be a number.'))


def test_a_cause_that_the_code_hides_does_not_count():
  error = ValueError('SEED=x must be a number.')
  error.__context__, error.__suppress_context__ = TimeoutError(), True
  assert not outages.is_outage(error)


@pytest.mark.parametrize(
  'text', ['Gloo AllReduce failed: closed by peer', 'UNAVAILABLE: no answer']
)
def test_a_network_that_fails_is_an_outage(text):
  assert outages.is_outage(ValueError(text))


def test_a_lost_connection_is_an_outage_also_without_a_number():
  assert outages.is_outage(TimeoutError())
  assert outages.is_outage(raised(ValueError(), outages.Outage('the bucket')))
