import contextlib
import gc
import json
import os
import resource
import selectors
import socket
import threading
import time

import pytest

from moe.parallel import farewell, peer, roll_call
from tests.parallel.cluster import free_port


@pytest.fixture
def place():
  """The place of process 0 among three, with free ports of this machine."""
  return roll_call.Place(f'localhost:{free_port()}', 3, 0, ('a', 'b', 'c'))


@pytest.fixture(autouse=True)
def ends(monkeypatch):
  """Collects the messages after which this process would end."""
  found = []
  monkeypatch.setattr(farewell, 'end_after', found.append)
  # A sign of life would be in the way of the messages that the tests read.
  monkeypatch.setattr(roll_call, 'BEAT_SECONDS', 60.0)
  yield found
  # A watch that outlived its test would end this process.
  for thread in threading.enumerate():
    if '_watch' in thread.name:
      thread.join(10)


def connected(place, number, **hello):
  """Connects and poses as a process; returns (socket, file with replies)."""
  connection = socket.create_connection(place.endpoint)
  words = {'process': number, 'of': place.num_processes, 'host': 'x', **hello}
  connection.sendall(json.dumps(words).encode() + b'\n')
  return connection, connection.makefile()


@pytest.fixture
def hub(place, ends):
  """Makes a `Hub` that calls the roll in another thread."""
  hub = roll_call.Hub(place)
  hub.thread = threading.Thread(target=hub.call, args=(10, {}), daemon=True)
  hub.thread.start()
  yield hub
  # A message that arrives after the test would end this process.
  for guest in list(hub._peers.values()):
    guest.has_left = True
    with contextlib.suppress(OSError):
      guest._socket.shutdown(socket.SHUT_RDWR)
  hub.thread.join()
  if hub._thread.is_alive():
    assert hub._left.wait(10)


def joined(place, hub):
  members = [connected(place, i) for i in (1, 2)]
  for _, replies in members:
    assert json.loads(replies.readline()) == {'go': socket.gethostname()}
  hub.thread.join()
  return members


def until(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_closed_connection_is_a_death_of_which_all_others_learn(
  place, hub, ends
):
  (first, file), (_, replies) = joined(place, hub)
  file.close()
  first.close()
  news = json.loads(replies.readline())
  assert news['lost'].startswith('process 1 (x) was killed')
  assert news['code'] == farewell.EXIT_LOST and news['grace'] == 0
  # A member of the test before may also be told of its end now.
  until(lambda: news in ends)


def test_a_process_without_a_sign_of_life_is_named(
  place, hub, ends, monkeypatch
):
  monkeypatch.setattr(roll_call, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(peer, 'SILENT_SECONDS', 1.0)
  (first, _), _ = joined(place, hub)
  # Process 1 gives signs of life, and process 2 does not.
  while not ends:
    first.sendall(b'{"beat": true}\n')
    time.sleep(0.05)
  assert ends[0]['lost'].startswith('process 2 (x) has given no sign of life')
  assert ends[0]['code'] == farewell.EXIT_LOST


def test_a_busy_process_may_be_silent(place, hub, ends, monkeypatch):
  monkeypatch.setattr(roll_call, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(peer, 'SILENT_SECONDS', 0.5)
  (first, _), (_, replies) = joined(place, hub)
  first.sendall(b'{"busy": 60}\n')
  until(lambda: ends)
  assert ends[0]['lost'].startswith('process 2')
  hub.tell_busy(30)
  assert {'busy': 30} in map(json.loads, iter(replies.readline, ''))


def test_processes_that_were_suspended_together_go_on(
  place, hub, ends, monkeypatch
):
  monkeypatch.setattr(roll_call, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(peer, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(peer, 'SILENT_SECONDS', 0.5)
  usual, nap = selectors.DefaultSelector.select, [1.0]

  def select(*args):
    found = usual(*args)
    time.sleep(nap[0] if nap else 0)
    nap.clear()
    return found

  monkeypatch.setattr(selectors.DefaultSelector, 'select', select)
  members = joined(place, hub)
  for _ in range(30):
    time.sleep(0.05)
    for connection, _ in members if not nap else ():
      connection.sendall(b'{"beat": true}\n')
  assert ends == []


def test_a_message_does_not_cost_a_call_for_each_process(
  place, hub, monkeypatch
):
  calls, usual = [], peer.Peer.fileno
  monkeypatch.setattr(
    peer.Peer, 'fileno', lambda self: calls.append(self) or usual(self)
  )
  (first, _), (_, replies) = joined(place, hub)
  before = len(calls)
  for i in range(20):
    first.sendall(b'{"times": [%d, 0.0, 0.0]}\n' % i)
    until(lambda i=i: i in hub._pace._windows)
  assert len(calls) - before < 20


def test_a_lost_machine_is_found_within_15_seconds():
  # The machine may be lost just after a sign of life.
  assert peer.BEAT_SECONDS + peer.LOST_SECONDS < 15


def test_a_message_does_not_delay_the_signs_of_life(place, hub, monkeypatch):
  waits, usual = [], selectors.DefaultSelector.select

  def select(selector, seconds):
    waits.append(seconds)
    return usual(selector, seconds)

  monkeypatch.setattr(selectors.DefaultSelector, 'select', select)
  (first, _), _ = joined(place, hub)
  until(lambda: waits)
  time.sleep(0.5)
  first.sendall(b'{"beat": true}\n')
  until(lambda: len(waits) > 1)
  assert waits[1] <= roll_call.BEAT_SECONDS - 0.5


def test_members_beat_and_leave_when_process_0_is_stopped(
  place, ends, monkeypatch
):
  monkeypatch.setattr(roll_call, 'BEAT_SECONDS', 0.05)
  monkeypatch.setattr(peer, 'SILENT_SECONDS', 0.5)
  with socket.create_server(place.endpoint) as server:
    member = roll_call.Member(place._replace(process_id=1))
    thread = threading.Thread(target=member.call, args=(10, {}))
    thread.start()
    connection, _ = server.accept()
    lines = connection.makefile()
    assert json.loads(lines.readline())['process'] == 1
    connection.sendall(b'{"go": "x"}\n')
    assert json.loads(lines.readline()) == {'beat': True}
    until(lambda: ends)
    assert ends[0]['lost'].startswith('process 0 (x) has given no sign')
    connection.sendall(b'{"bye": true}\n')
    member.leave(0, '')


def test_a_process_that_ends_well_is_not_missed(place, hub, ends):
  members = joined(place, hub)
  for connection, replies in members:
    connection.sendall(b'{"leaves": 0}\n')
    replies.close()
    connection.close()
  assert hub._left.wait(10)
  assert ends == []


def test_a_process_that_is_done_waits_until_process_0_is_done(place, hub, ends):
  member = roll_call.Member(place._replace(process_id=1))
  other, _ = connected(place, 2)
  member.call(10, {})
  hub.thread.join()
  waits = threading.Thread(target=member.leave, args=(0, ''))
  waits.start()
  until(lambda: hub._peers[1].has_left)
  waits.join(0.2)
  assert waits.is_alive()  # Process 0 may write results now.
  leaves = threading.Thread(target=hub.leave, args=(0, ''))
  leaves.start()
  waits.join(10)
  assert not waits.is_alive()
  assert leaves.is_alive()  # Process 2 still works.
  other.sendall(b'{"leaves": 0}\n')
  leaves.join(10)
  assert not leaves.is_alive() and ends == []


def test_processes_that_end_with_process_0_are_not_missed(place, hub, ends):
  members = joined(place, hub)
  leaves = threading.Thread(target=hub.leave, args=(2, 'a mistake'))
  leaves.start()
  for connection, replies in members:
    assert 'a mistake' in json.loads(replies.readline())['lost']
    replies.close()
    connection.close()
  leaves.join(4)
  assert not leaves.is_alive() and ends == []


def test_a_process_that_is_done_ends_at_once_when_process_0_fails(
  place, hub, ends
):
  member = roll_call.Member(place._replace(process_id=1))
  other, _ = connected(place, 2)
  member.call(10, {})
  hub.thread.join()
  threading.Thread(target=member.leave, args=(0, ''), daemon=True).start()
  until(lambda: hub._peers[1].has_left)
  threading.Thread(target=hub.leave, args=(75, ''), daemon=True).start()
  until(lambda: ends)
  assert (ends[0]['code'], ends[0]['grace']) == (75, 0)
  member.leave(75, '')
  other.close()


def test_an_error_of_one_process_is_told_to_the_others(place, hub, ends):
  (first, _), (_, replies) = joined(place, hub)
  first.sendall(b'{"leaves": 2, "text": "D_MODEL=3 must be even."}\n')
  news = json.loads(replies.readline())
  assert (
    news['lost'] == 'process 1 (x) ended with code 2: D_MODEL=3 must be even.'
  )
  assert news['grace'] > 0  # Others need time to report the same error.
  assert news['code'] == farewell.EXIT_MISTAKE  # So nobody tries again.
  # A member of the test before may also be told of its end now.
  until(lambda: news in ends)


@pytest.mark.parametrize(
  ('hello', 'reply'),
  [
    ({'of': 4}, 'process 0 waits for 3 processes'),
    ({'process': 1}, 'x has already come as process 1'),
  ],
)
def test_a_process_with_a_wrong_number_is_refused(place, hub, hello, reply):
  first = connected(place, 1)
  until(lambda: hub.absent().startswith('process 2 (c) of 3'))
  _, replies = connected(place, 2, **hello)
  assert json.loads(replies.readline()) == {'error': reply}
  second = connected(place, 2)  # The roll call goes on after the refusal.
  for _, replies in (first, second):
    assert json.loads(replies.readline()) == {'go': socket.gethostname()}


@pytest.fixture
def few_descriptors():
  """Allows 1,200 open files and takes all numbers up to 1,100.

  Sockets of earlier tests give their numbers back when they are collected.
  """
  gc.collect()
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
  taken = [os.dup(2)]
  while taken[-1] < 1100:
    taken.append(os.dup(2))
  yield
  for descriptor in taken:
    os.close(descriptor)
  resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_process_0_can_wait_for_more_than_1024_descriptors(
  place, hub, few_descriptors
):
  members = joined(place, hub)
  assert max(member.fileno() for member, _ in members) > 1023


def test_the_limit_of_open_files_is_raised_but_never_lowered(few_descriptors):
  for number, expected in ((2000, 2000), (5, 2000)):
    peer.allow_descriptors(number)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == expected


@pytest.mark.parametrize(
  'line', [b'GET / HTTP/1.1\r\n\r\n', b'[' * 4000 + b'\n', b'x' * 9000, b'{}\n']
)
def test_a_stranger_on_the_port_disturbs_nobody(place, hub, line):
  stranger = socket.create_connection(place.endpoint)
  stranger.sendall(line)
  assert len(joined(place, hub)) == 2


@pytest.mark.parametrize('offset', [0, -1])
def test_a_port_in_use_is_refused(place, offset):
  # The roll call has the second port, JAX's coordinator the one before it.
  host, port = place.endpoint
  with socket.create_server((host, port + offset)):
    with pytest.raises(ValueError, match=f'port {port + offset} of'):
      roll_call.Hub(place)


def test_a_process_that_ended_before_the_start_may_come_again(place, hub):
  first, replies = connected(place, 1)
  until(lambda: hub.absent().startswith('process 2 (c) of 3'))
  replies.close()
  first.close()
  until(lambda: hub.absent().startswith('process 1 (b), process 2 (c) of 3'))
  assert len(joined(place, hub)) == 2


def test_members_leave_when_process_0_dies(place, hub, ends):
  member = roll_call.Member(place._replace(process_id=1))
  thread = threading.Thread(target=member.call, args=(10, {'a': 1}))
  thread.start()
  other = connected(place, 2)
  thread.join(10)
  assert other
  assert hub._peers[1].report == {'a': 1} and abs(hub._peers[1].clock) < 1
  for guest in hub._peers.values():
    guest._socket.shutdown(socket.SHUT_RDWR)
  name = f'process 0 ({socket.gethostname()}) was killed'
  until(lambda: any(name in news['lost'] for news in ends))
