"""Finds processes that were not started, and processes that have died.

If a process was not started, JAX waits for minutes and then aborts without
naming the process. If a process dies, the others wait in their next collective.
So every process first connects to process 0, which calls the roll. The
connections stay open. When a process dies, the kernel closes its connection at
once. If a machine is lost, it does not acknowledge the next sign of life, so
TCP closes the connection within `BEAT_SECONDS` + `peer.LOST_SECONDS`. A stopped
process sends no signs of life, and the others end after `peer.SILENT_SECONDS`.

A message is a line of JSON. The port is the coordinator's port plus 1 (65534
for 65535). Messages contain no secrets. Process 0 treats an invalid message
like the end of the connection.
"""

import logging
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from moe.parallel import farewell, pace
from moe.parallel.peer import (
  BEAT_SECONDS,
  Peer,
  allow_descriptors,
  forgive,
  listen,
  readable,
)

_logger = logging.getLogger(__name__)

# After this many seconds the log names the missing processes, and the roll call
# goes on.
TELL_SECONDS = 30.0
_RETRY_SECONDS = 0.2
# Process 0 needs a descriptor for each other process, and some for other files.
_OTHER_DESCRIPTORS = 1024


class Guest(NamedTuple):
  """What process 0 knows about another process.

  Attributes:
    host: name of its machine.
    clock: seconds by which its clock is ahead of process 0's clock.
    report: facts that the process has sent about itself.
  """

  host: str
  clock: float
  report: dict[str, Any]


class Missing(Exception):
  """Raised if a process has not joined in time; the message names it.

  Attributes:
    guests: number of a process -> what is known about it, for processes that
      have joined.
  """

  def __init__(self, text: str, guests: dict[int, Guest] | None = None):
    super().__init__(text)
    self.guests = guests or {}


class Place(NamedTuple):
  """The place of this process among all processes of a program.

  Attributes:
    address: host:port of JAX's coordinator, which runs in process 0.
    num_processes: number of processes.
    process_id: number of this process.
    hosts: host of each process, in order; () if they are not known.
  """

  address: str
  num_processes: int
  process_id: int
  hosts: Sequence[str] = ()

  @property
  def endpoint(self) -> tuple[str, int]:
    """(host, port) at which process 0 waits for the other processes."""
    host, port = self.address.rsplit(':', 1)
    # 65535 is the largest port.
    beside = int(port) + 1 if int(port) < 65535 else int(port) - 1
    return host.strip('[]'), beside

  def name(self, process: int, host: str = '') -> str:
    """The name of a process in messages, with its host if the host is known."""
    if not host and process < len(self.hosts):
      host = self.hosts[process]
    if not host and process == 0:
      host = self.address
    return f'process {process}' + (f' ({host})' if host else '')


class Hub:
  """What process 0 does: it calls the roll and watches the other processes."""

  def __init__(self, place: Place):
    allow_descriptors(place.num_processes + _OTHER_DESCRIPTORS)
    host, port = place.endpoint
    # JAX's own error for its port would be a crash without the reason.
    listen(host, int(place.address.rsplit(':', 1)[1])).close()
    self._server = listen(host, port)
    self._place = place
    self._peers: dict[int, Peer] = {}
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._done = threading.Event()  # All others that are present have left.
    self._left = threading.Event()  # All connections are closed.
    self._pace = pace.Pace(place.num_processes, self._say)

  def call(self, patience: float, report: dict[str, Any]) -> dict[int, Guest]:
    """Waits until all processes have joined; returns number -> `Guest`.

    Raises:
      Missing: if a process has not joined after `patience` seconds.
    """
    del report  # Process 0 does not report to itself.
    begin, is_told, guests = time.monotonic(), False, []
    while len(self._peers) < self._place.num_processes - 1:
      waited = time.monotonic() - begin
      if waited >= patience:
        text = (
          f'{self.absent()} not started after {waited:.0f} s: start the same'
          ' command on every host'
        )
        for peer in self._peers.values():
          peer.send(missing=text)
        raise Missing(text, self._guests())
      if waited >= TELL_SECONDS and not is_told:
        is_told = True
        _logger.info(f'waiting: {self.absent()} not started yet')
      known = list(self._peers.values())
      waiting = [self._server, *guests, *known]
      for ready in readable(waiting, 0.1):
        if ready is self._server:
          guests.append(Peer(self._server.accept()[0]))
        elif ready in known:  # The process has ended. It may join again.
          del self._peers[ready.process]
          ready.close()
        else:
          guests.remove(ready)
          self._welcome(ready)
    for peer in self._peers.values():
      peer.send(go=socket.gethostname())
    self._server.close()
    self._thread.start()
    return self._guests()

  def _guests(self) -> dict[int, Guest]:
    return {
      i: Guest(peer.host, peer.clock, peer.report)
      for i, peer in sorted(self._peers.items())
    }

  def absent(self) -> str:
    """Names the processes that have not joined."""
    place = self._place
    missing = [
      place.name(i)
      for i in range(1, place.num_processes)
      if i not in self._peers
    ]
    more = len(missing) - 16
    names = ', '.join(missing[:16]) + (f' and {more} more' if more > 0 else '')
    return f'{names} of {place.num_processes}'

  def _welcome(self, guest: Peer) -> None:
    """Accepts a process that has connected, if its first message is right."""
    hello = guest.greeting()
    process, size = hello.get('process'), self._place.num_processes
    if type(process) is not int or not 0 < process < size:
      guest.close()
    elif hello.get('of') != size:
      guest.send(error=f'process 0 waits for {size} processes')
      guest.close()
    elif process in self._peers:
      other = self._peers[process].host
      guest.send(error=f'{other} has already come as process {process}')
      guest.close()
    else:
      guest.process, guest.host = process, str(hello.get('host', ''))[:100]
      report, clock = hello.get('report'), hello.get('time')
      guest.report = report if isinstance(report, dict) else {}
      if isinstance(clock, float):
        guest.clock = clock - time.time()
      self._peers[process] = guest

  def _watch(self) -> None:
    try:
      self._watch_all()
    finally:  # `leave` must not wait for a thread that has failed.
      self._done.set()
      self._left.set()

  def _watch_all(self) -> None:
    present, beaten = dict(self._peers), time.monotonic()
    selector = selectors.DefaultSelector()
    for peer in present.values():
      peer.heard = beaten
      selector.register(peer, selectors.EVENT_READ)
    while present:
      begin = time.monotonic()
      # A message must not delay the next sign of life.
      left = max(0.0, beaten + BEAT_SECONDS - begin)
      ready = [key.fileobj for key, _ in selector.select(left)]
      forgive(begin, present.values())
      # If one process is killed, others fail. So we report killed ones first.
      news = [(peer, peer.receive()) for peer in ready]
      for peer, messages in sorted(news, key=lambda n: n[1] is not None):
        who = self._place.name(peer.process, peer.host)
        if messages is None:
          del present[peer.process]
          selector.unregister(peer)
          if not peer.has_left:
            self._spread(farewell.vanished(who), present.values())
        for message in messages or ():
          self._hear(peer, who, message, present.values())
      if time.monotonic() - beaten >= BEAT_SECONDS:
        beaten = time.monotonic()
        self._beat(list(present.values()))
      if all(peer.has_left for peer in present.values()):
        self._done.set()
    selector.close()

  def _hear(
    self, peer: Peer, who: str, message: dict, present: Iterable[Peer]
  ) -> None:
    """Does what a message of a process calls for."""
    if 'busy' in message:
      peer.allow_silence(message['busy'])
    if 'times' in message:
      self._pace.add(peer.process, *message['times'])
    if 'leaves' in message:
      peer.has_left = True
      code, text = message['leaves'], message.get('text', '')
      if code:
        self._spread(farewell.left(who, code, text), present)

  def _beat(self, present: Sequence[Peer]) -> None:
    """Sends a sign of life, and finds processes that send none."""
    for peer in present:
      peer.send(beat=True)
      if peer.is_silent() and not peer.has_left:
        who = self._place.name(peer.process, peer.host)
        others = [other for other in present if other is not peer]
        self._spread(farewell.silent(who), others)

  def _spread(self, news: dict[str, Any], peers: Iterable[Peer]) -> None:
    for peer in peers:
      peer.send(**news)
    farewell.end_after(news)

  def tell(self, times: tuple[int, float, float]) -> None:
    """Adds the times of this process to the comparison, see `pace.Pace`."""
    self._pace.add(0, *times)

  def tell_busy(self, seconds: float) -> None:
    """Tells the others that this process may be silent for `seconds`."""
    for peer in self._peers.values():
      peer.send(busy=seconds)

  def _say(self, process: int, text: str) -> None:
    host = self._peers[process].host if process else socket.gethostname()
    _logger.info(f'warning: {self._place.name(process, host)} {text}')

  def leave(self, code: int, text: str) -> None:
    """Tells the others that this process ends, and waits for them."""
    who = self._place.name(0, socket.gethostname())
    news = farewell.left(who, code, text) if code else {'bye': True}
    for peer in self._peers.values():
      peer.has_left |= code > 0  # The peer ends because of these news.
      peer.send(**news)
    # When process 0 ends, JAX ends the others at once. So they must end first.
    if code:
      self._left.wait(news['grace'] + 2)
    else:
      self._done.wait()


class Member:
  """What the processes besides 0 do: they wait for news of lost processes."""

  def __init__(self, place: Place):
    self._place = place
    self._hub: Peer | None = None
    self._is_over = threading.Event()  # Process 0 has said 'bye'.
    self._has_left = False
    self._early: list[dict[str, Any]] = []  # Messages that came with 'go'.
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def call(self, patience: float, report: dict[str, Any]) -> dict[int, Guest]:
    """Waits until all processes have joined; returns {}.

    Raises:
      Missing: if a process has not joined after `patience` seconds.
      ValueError: if process 0 refuses this process.
    """
    end, tells = time.monotonic() + patience, time.monotonic() + TELL_SECONDS
    while self._hub is None:
      # We wait longer than process 0, so that it can name the missing processes
      # first.
      self._hub = self._answer(end + 5, report)
      now = time.monotonic()
      if self._hub is None and now >= end:
        raise Missing(
          f'{self._place.name(0)} not started after {patience:.0f} s, or its'
          f' port {self._place.endpoint[1]} is closed to this host'
        )
      if self._hub is None and now >= tells:
        tells = end
        _logger.info(f'waiting: {self._place.name(0)} not started yet')
    self._thread.start()
    threading.Thread(target=self._beat, daemon=True).start()
    return {}

  def _answer(self, end: float, report: dict[str, Any]) -> Peer | None:
    """Connects to process 0 and waits for 'go'; returns None to try again."""
    try:
      connection = socket.create_connection(self._place.endpoint, timeout=2)
    except OSError:
      time.sleep(_RETRY_SECONDS)
      return None
    hub, place = Peer(connection), self._place
    hub.send(
      process=place.process_id,
      of=place.num_processes,
      host=socket.gethostname(),
      time=time.time(),
      report=report,
    )
    left = max(0.0, end - time.monotonic())
    reply = hub.receive() if readable([hub], left) else None
    reply, *self._early = reply or [{}]
    if 'missing' in reply:
      raise Missing(reply['missing'])
    if 'error' in reply:
      raise ValueError(
        f'NUM_PROCESSES={place.num_processes} and PROCESS_ID={place.process_id}'
        f' must fit the other processes, but {reply["error"]}: correct them.'
      )
    if 'go' in reply:
      hub.host = str(reply['go'])
      return hub
    hub.close()
    time.sleep(_RETRY_SECONDS)
    return None

  def _watch(self) -> None:
    who = self._place.name(0, self._hub.host)
    while not self._is_over.is_set():
      begin = time.monotonic()
      if not self._early and not readable([self._hub], BEAT_SECONDS):
        forgive(begin, [self._hub])
        if self._hub.is_silent():
          farewell.end_after(farewell.silent(who))
        continue
      messages, self._early = self._early or self._hub.receive(), []
      if messages is None:
        farewell.end_after(farewell.vanished(who))
        return
      for message in messages:
        if 'busy' in message:
          self._hub.allow_silence(message['busy'])
        if 'bye' in message:
          self._is_over.set()
        if 'lost' in message:  # A process that is done needs no time to save.
          grace = 0.0 if self._has_left else message['grace']
          farewell.end_after({**message, 'grace': grace})

  def _beat(self) -> None:
    while not (self._is_over.is_set() and self._has_left):
      self._hub.send(beat=True)
      time.sleep(BEAT_SECONDS)

  def tell(self, times: tuple[int, float, float]) -> None:
    """Tells process 0 the times of this process, see `pace.Pace`."""
    self._hub.send(times=times)

  def tell_busy(self, seconds: float) -> None:
    """Tells process 0 that this process may be silent for `seconds`."""
    self._hub.send(busy=seconds)

  def leave(self, code: int, text: str) -> None:
    """Tells process 0 that this process ends; waits for its 'bye' if code is 0.

    Process 0 may write results for hours. In JAX the process could wait only
    five minutes. Here it still learns if process 0 is lost.
    """
    self._has_left = True
    self._hub.send(leaves=code, text=text[:1000])
    if not code:
      self._is_over.wait()
