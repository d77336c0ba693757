"""Lets a process join the other processes of a program, and leave them."""

import logging
import os
import socket
import sys
import time
from typing import Any

from moe import stop_signals
from moe.parallel import pace, roll_call

_logger = logging.getLogger(__name__)

_NAMES = ('NUM_PROCESSES', 'PROCESS_ID', 'JAX_COORDINATOR_ADDRESS')
# Variable with the hosts of a slice on GKE, in the order of process numbers.
_HOSTS = 'TPU_WORKER_HOSTNAMES'
# Variables with the number of processes on one machine: Slurm writes '2' or
# '2(x4)', Open MPI writes '2'.
_BESIDE = ('SLURM_STEP_TASKS_PER_NODE', 'OMPI_COMM_WORLD_LOCAL_SIZE')
# Names of JAX's classes for TPUs.
_TPU_CLUSTERS = {'GkeTpuCluster', 'GceTpuCluster'}
# Seconds after which JAX and the roll call stop waiting for other processes.
PATIENCE = 300.0
# Seconds after the roll call in which JAX's coordinator must answer.
_COORDINATOR_SECONDS = 20.0

_watch: roll_call.Hub | roll_call.Member | None = None
_clock = pace.Clock()


def initialize(
  patience: float | None = None, report: dict[str, Any] | None = None
) -> dict[int, roll_call.Guest]:
  """Joins the other processes, if any; must be called first, and only once.

  NUM_PROCESSES, PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0)
  say which process this is. Without these variables JAX asks Slurm, Kubernetes,
  Open MPI or the metadata of a TPU VM; then JAX_COORDINATOR_PORT may set
  another port. The port after the coordinator's port (65534 for 65535) must be
  open, too.

  Args:
    patience: seconds to wait for the others; None for the environment variable
      JOIN_SECONDS, or else 300.
    report: facts about this process that process 0 gets; a few kilobytes at
      most.

  Returns:
    Number of a process -> what is known about it; {} except on process 0.

  Raises:
    ValueError: if only some of the three variables are set, a number is wrong,
      or the port is in use.
    roll_call.Missing: if a process has not joined in time, or if the port of
      JAX's coordinator is closed to this process.
  """
  global _watch
  if patience is None:
    patience = float(os.environ.get('JOIN_SECONDS', PATIENCE))
  place, local_devices = _find(patience)
  if place is None:
    return {}
  keep_stdout()
  # Imported here, since commands import this file, and --help must be fast. It
  # takes seconds, and after the roll call JAX's coordinator must start at once.
  import jax

  guests = {}
  if place.num_processes > 1:
    is_first = place.process_id == 0
    watch = roll_call.Hub(place) if is_first else roll_call.Member(place)
    guests = watch.call(patience, report or {})
    _watch = watch
    stop_signals.before_exit(_leave_midway)
    if not is_first:
      _wait_for_coordinator(place)
  # JAX's handler for SIGTERM would replace ours, and commands would ignore the
  # signal. `multihost.sharing_sigterm` starts the service when it is needed.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    place.address,
    place.num_processes,
    place.process_id,
    local_devices,
    cluster_detection_method='deactivate',
    # The roll call finds a stopped process before, and names it.
    heartbeat_timeout_seconds=int(PATIENCE),
  )
  return guests


def _wait_for_coordinator(place: roll_call.Place) -> None:
  """Waits until JAX's coordinator can be reached; JAX would wait for minutes.

  Raises:
    roll_call.Missing: if it cannot be reached; the message names the port.
  """
  host, port = place.address.rsplit(':', 1)
  end = time.monotonic() + _COORDINATOR_SECONDS
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 2).close()
    except OSError as error:
      if time.monotonic() >= end:
        raise roll_call.Missing(
          f'port {port} of {place.name(0)} is closed to this host, but port'
          f' {place.endpoint[1]} is open: open both ({error})'
        ) from error
      time.sleep(0.2)
    else:
      return


def keep_stdout() -> None:
  """Sends what native libraries print to stderr; Python keeps its stdout.

  On CPUs, Gloo prints a line on stdout for each device. These lines would break
  the JSON that a command prints.
  """
  sys.stdout.flush()
  own = os.dup(1)
  os.dup2(2, 1)
  old = sys.stdout
  lines = 1 if old.line_buffering else -1
  sys.stdout = open(own, 'w', lines, encoding=old.encoding, errors=old.errors)


def _find(patience: float) -> tuple[roll_call.Place | None, list[int] | None]:
  """Returns (place, devices) of this process.

  The place is None if neither variables nor a cluster say what it is. The
  devices are None if the process uses all devices of its machine.

  Raises:
    ValueError: if only some of the variables are set, or a number is wrong.
    roll_call.Missing: if the name of process 0's machine is unknown after
      `patience` seconds.
  """
  given = [n for n in _NAMES if n in os.environ]
  if given and len(given) < len(_NAMES):
    raise ValueError(
      f'{", ".join(_NAMES)} must be set together, got {", ".join(given)} alone:'
      ' set all or none.'
    )
  if given:
    size, process = (int(os.environ[n]) for n in _NAMES[:2])
    if not 0 <= process < size:
      raise ValueError(
        f'PROCESS_ID={process} must be from 0 to {size - 1}, since'
        f' NUM_PROCESSES={size}: correct it.'
      )
    return _place(os.environ[_NAMES[2]], size, process), None
  cluster = _cluster()
  if cluster is None:
    return None, None
  address = _address(cluster, patience)
  beside = next((os.environ[n] for n in _BESIDE if n in os.environ), '1')
  local = cluster.get_local_process_id()
  # A process that is alone on its machine uses all devices there.
  devices = (
    [local] if local is not None and beside.split('(')[0] != '1' else None
  )
  place = _place(address, cluster.get_process_count(), cluster.get_process_id())
  return place, devices


def _address(cluster: Any, patience: float) -> str:
  """The host:port of process 0; waits until the network knows its name."""
  begin, is_told = time.monotonic(), False
  while True:
    try:
      return cluster.get_coordinator_address(
        # JAX waits without a word. So it waits briefly, and we repeat that.
        timeout_secs=1,
        override_coordinator_port=os.environ.get('JAX_COORDINATOR_PORT'),
      )
    except RuntimeError as error:
      if cluster.__name__ not in _TPU_CLUSTERS:
        raise
      waited, text = time.monotonic() - begin, str(error)
    if waited >= patience:
      raise roll_call.Missing(
        f'process 0 not started after {waited:.0f} s: {text}'
      )
    if waited >= roll_call.TELL_SECONDS and not is_told:
      is_told = True
      _logger.info(f'waiting: process 0 not started yet: {text}')


def count() -> int:
  """Number of processes that the environment tells of; 1 if it tells nothing.

  Nothing is waited for, and JAX is not started.
  """
  if _NAMES[0] in os.environ:
    return int(os.environ[_NAMES[0]])
  cluster = _cluster()
  return cluster.get_process_count() if cluster else 1


def _place(address: str, size: int, process: int) -> roll_call.Place:
  hosts = tuple(filter(None, os.environ.get(_HOSTS, '').split(',')))
  return roll_call.Place(
    address, size, process, hosts if len(hosts) == size else ()
  )


def _cluster() -> Any:
  """JAX's class for the cluster of this process; None if there is none."""
  # Imported here, since commands import this file, and --help must be fast. JAX
  # has no public function that gives the number of a process before it joins.
  from jax._src import clusters

  unwanted = set()
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    # With JAX on the CPU, a host of a TPU pod does not wait for the others.
    unwanted |= _TPU_CLUSTERS
  if 'JOB_COMPLETION_INDEX' not in os.environ:
    unwanted.add('K8sCluster')  # The pod does not belong to an indexed job.
  for found in clusters.ClusterEnv._cluster_types:
    if found.__name__ not in unwanted and not found.opt_in_only_method:
      if found.is_env_present():
        return found
  return None


def are_joined() -> bool:
  """Whether this process has joined others."""
  return _watch is not None


def is_first() -> bool:
  """Whether this is process 0, or the only process."""
  return not isinstance(_watch, roll_call.Member)


def tell_step(step: int, host: float, whole: float) -> None:
  """Tells process 0 the times of a step, so that it can name a slow process.

  Args:
    step: number of the step, counted from 1.
    host: seconds in which the devices waited for this host.
    whole: seconds of the whole step.
  """
  if _watch is None:
    return
  times = _clock.add(step, host, whole)
  if times:
    _watch.tell(times)


def tell_busy(seconds: float) -> None:
  """Tells who watches this process that it may be silent for `seconds`.

  This is for a call into C code that keeps Python's lock. Then no thread of
  this process can send a sign of life.
  """
  if _watch is not None:
    _watch.tell_busy(seconds)


def _leave_midway() -> None:
  """Tells the others that a signal ends this process before it has saved."""
  if _watch is not None:
    text = 'ended in the middle of its work'
    _watch.leave(stop_signals.EXIT_STOPPED, text)


def leave(code: int, text: str = '') -> None:
  """Tells the other processes, if any, that this process ends.

  If there are others and `code` is 0, this function waits until all are done.
  If there are others and `code` is not 0, it ends the process. If Python ended
  normally, JAX would wait for the others for minutes.

  Args:
    code: exit code of this process.
    text: why the process ends, such as the error message.
  """
  global _watch
  if _watch is None:
    return
  _watch.leave(code, text)
  if not code:
    _watch = None
  else:
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    os._exit(code)
