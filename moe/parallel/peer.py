"""A connection between two processes of a program; messages are JSON lines."""

import contextlib
import json
import resource
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

# Each process sends a sign of life every `BEAT_SECONDS`. If a machine is lost,
# the next sign is not acknowledged, and TCP closes the connection after
# `LOST_SECONDS`. So both together must be less than the 15 s that we promise.
BEAT_SECONDS = 5.0
LOST_SECONDS = 9
# A process that is stopped keeps its connection, but sends no sign of life.
# After this many seconds without a sign it counts as lost.
SILENT_SECONDS = 75.0
_LONGEST_LINE = 2**16
# A process must send its number within this many seconds after it connects.
_GREETING_SECONDS = 1.0


def allow_descriptors(number: int) -> None:
  """Raises the limit of open files to a number, or as far as allowed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
  """Listens at a port; raises ValueError if the port is not available."""
  is_local = host in ('localhost', '127.0.0.1')
  try:
    if is_local or not socket.has_dualstack_ipv6():
      return socket.create_server((host if is_local else '', port))
    return socket.create_server(
      ('', port), family=socket.AF_INET6, dualstack_ipv6=True
    )
  except OSError as error:
    raise ValueError(
      f'port {port} of {host} must be free for process 0, got {error}: end'
      ' what uses it, or choose another port of JAX_COORDINATOR_ADDRESS.'
    ) from error


def readable(waiting: Iterable[Any], seconds: float | None) -> list[Any]:
  """Waits for data at sockets or peers; returns those that have data.

  `select.select` is not used: it fails if a descriptor is 1,024 or more, which
  happens in large programs.

  Args:
    waiting: the sockets or peers.
    seconds: most time to wait; None for no limit.
  """
  with selectors.PollSelector() as selector:
    for item in waiting:
      selector.register(item, selectors.EVENT_READ)
    return [key.fileobj for key, _ in selector.select(seconds)]


def forgive(begin: float, peers: Iterable['Peer']) -> None:
  """Forgives other processes their silence if this one was suspended itself.

  Args:
    begin: when a wait for at most `BEAT_SECONDS` began, by `time.monotonic`.
    peers: the other processes; perhaps all were suspended together.
  """
  now = time.monotonic()
  if now - begin > 2 * BEAT_SECONDS:
    for peer in peers:
      peer.heard = now


class Peer:
  """A connection to another process."""

  def __init__(self, connection: socket.socket):
    self._socket = connection
    self._data = b''
    self._sending = threading.Lock()
    self.heard = time.monotonic()
    self.process = None
    self.host = ''
    self.clock = 0.0
    self.report = {}
    self.has_left = False
    self._busy_until = 0.0
    # Waiting for a message has no time limit, since TCP ends a lost connection:
    # the first three options if nothing was sent, else the last one.
    connection.settimeout(None)
    option = connection.setsockopt
    option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
      ('TCP_KEEPIDLE', 5),
      ('TCP_KEEPINTVL', 3),
      ('TCP_KEEPCNT', 3),
      ('TCP_USER_TIMEOUT', 1000 * LOST_SECONDS),
    ):
      if hasattr(socket, name):  # Some options exist only on Linux.
        option(socket.IPPROTO_TCP, getattr(socket, name), value)

  def fileno(self) -> int:
    """The file descriptor, for `readable`."""
    return self._socket.fileno()

  def send(self, **message: Any) -> None:
    """Sends a message; only `receive` tells whether the connection is lost."""
    with contextlib.suppress(OSError), self._sending:
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> list[dict[str, Any]] | None:
    """Waits for messages; None if the connection is closed or data invalid."""
    self.heard = time.monotonic()
    try:
      data = self._socket.recv(_LONGEST_LINE)
      *lines, self._data = (self._data + data).split(b'\n')
      messages = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
      return None
    if not data or len(self._data) > _LONGEST_LINE:
      return None
    return messages if all(isinstance(m, dict) for m in messages) else None

  def is_silent(self) -> bool:
    """Whether the process has been silent for too long.

    It may be silent for `SILENT_SECONDS` after its last data, and as long after
    a time that `allow_silence` has granted.
    """
    since = max(self.heard, self._busy_until)
    return time.monotonic() - since > SILENT_SECONDS

  def allow_silence(self, seconds: float) -> None:
    """Allows the process to be silent for `seconds` from now on."""
    self._busy_until = time.monotonic() + seconds

  def greeting(self) -> dict[str, Any]:
    """Waits for the first message; {} if none comes or if it is invalid."""
    end = time.monotonic() + _GREETING_SECONDS
    while time.monotonic() < end:
      if readable([self], _GREETING_SECONDS):
        messages = self.receive()
        if messages or messages is None:
          return messages[0] if messages else {}
    return {}

  def close(self) -> None:
    """Closes the connection."""
    self._socket.close()
