"""Checks the machines of a run before the run: one line for each finding.

Each host examines itself and sends its findings to process 0. Process 0
compares them. So it can name hosts that were not started or that differ.
"""

import glob
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from moe import stop_signals
from moe.data.store import file_sha256
from moe.parallel import processes, roll_call
from moe.runs.folding_run import FoldingRun
from moe.runs.run import Run
from moe.runs.tokenizer_run import TokenizerRun

AnyRun = Run | TokenizerRun | FoldingRun

BAD, DOUBT, GOOD = 0, 1, 2
_WORDS = {BAD: 'BAD', DOUBT: 'doubt', GOOD: 'good'}
# Packages whose versions change the compiled program or the checkpoint files.
_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint')
_MOST_CLOCK_SECONDS = 5.0
# Compiled programs and token stores need about this much disk space.
_LEAST_FREE_BYTES = 10 * 2**30
_LOCK = '/tmp/libtpu_lockfile'
_CHIPS = ('/dev/accel*', '/dev/vfio/[0-9]*')


class Finding(NamedTuple):
  """The result of one check.

  Attributes:
    grade: BAD, DOUBT or GOOD.
    check: name of the check.
    text: what was found, and what to do.
    host: name of the host; '' if the finding is about all hosts.
  """

  grade: int
  check: str
  text: str
  host: str = ''

  def __str__(self) -> str:
    where = f'  {self.host}' if self.host else ''
    return f'{_WORDS[self.grade]:5}  {self.check:9}{where}  {self.text}'


class Request(NamedTuple):
  """What to examine.

  Attributes:
    run: the run; None if only the machine is examined.
    workdir: directory of the run, which may be in a bucket; '' for none.
    cache_dir: directory of token stores.
    patience: seconds to wait for the other hosts.
  """

  run: AnyRun | None
  workdir: str
  cache_dir: str
  patience: float


def examine(request: Request) -> dict[str, Any]:
  """Examines this host; returns facts that JSON can hold."""
  checks = [
    *_disk(request.cache_dir),
    *_writing(request.workdir),
    *_chips(),
  ]
  return {
    'host': socket.gethostname(),
    'versions': versions(),
    'hashes': hashes(request.run, request.cache_dir) if request.run else {},
    'findings': [finding[:3] for finding in checks],
  }


def versions() -> dict[str, str]:
  """The versions of Python and of `_PACKAGES`."""
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'none'
  return found


def hashes(run: AnyRun, cache_dir: str) -> dict[str, str]:
  """The hashes of the vocabulary and of the stores of a run."""
  found = {}
  if isinstance(run, Run) and run.data.vocabulary:
    found['vocabulary'] = (
      file_sha256(run.data.vocabulary)[:12]
      if os.path.exists(run.data.vocabulary)
      else 'missing'
    )
  for task in _stores(run):
    pattern = os.path.join(
      glob.escape(cache_dir), '*', glob.escape(task), '**', '*.json'
    )
    # A task has manifests. A mixture has one file, which names its tasks.
    files = sorted(glob.glob(pattern, recursive=True))
    content = b''.join(pathlib.Path(file).read_bytes() for file in files)
    found[task] = hashlib.sha256(content).hexdigest()[:12] if files else 'none'
  return found


def _stores(run: AnyRun) -> Sequence[str]:
  """Names of the folders of a run's stores.

  The folder of a user's own pictures or chains depends on their path, which may
  differ between hosts. So it is left out.
  """
  if isinstance(run, Run):
    return (run.data.train, *run.data.evaluation)
  is_folding = isinstance(run, FoldingRun)
  setting = run.data.longest if is_folding else run.data.pixels
  return [f'{name}_{setting}' for name in run.data.names if '/' not in name]


def _disk(cache_dir: str) -> Iterable[Finding]:
  for place in dict.fromkeys((cache_dir, '/tmp')):
    # The folder may not exist yet, but one above it does.
    path = pathlib.Path(place).absolute()
    path = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(path).free
    text = f'{free / 2**30:.0f} GiB free at {path}'
    if free < _LEAST_FREE_BYTES:
      needed = _LEAST_FREE_BYTES // 2**30
      yield Finding(DOUBT, 'disk', f'{text}; {needed} GiB are safe')
    else:
      yield Finding(GOOD, 'disk', text)


def _writing(workdir: str) -> Iterable[Finding]:
  if not workdir:
    return
  path = epath.Path(workdir) / f'.probe-{uuid.uuid4().hex}'
  begin = time.monotonic()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x' * 2**20)
    is_same = path.read_bytes() == b'x' * 2**20
    path.unlink()
  # Clients of object stores raise errors that are not OSError.
  except Exception as error:
    reason = ' '.join(str(error).split())[:200]
    yield Finding(BAD, 'write', f'{workdir} cannot be written: {reason}')
    return
  text = f'{workdir} took a MiB in {time.monotonic() - begin:.2f} s'
  if is_same:
    yield Finding(GOOD, 'write', text)
  else:
    text = f'{workdir} does not return the bytes that were written'
    yield Finding(BAD, 'write', text)


def _chips() -> Iterable[Finding]:
  """Finds processes that hold a TPU, and the lock file of an ended process.

  A host without TPUs has no finding, since nothing waits for its lock file.
  """
  chips = [path for pattern in _CHIPS for path in glob.glob(pattern)]
  if not chips:
    return
  holders = holders_of([*chips, _LOCK])
  for process, (path, name) in holders.items():
    text = f'process {process} ({name}) holds {path}: end it first'
    yield Finding(BAD, 'chips', text)
  if os.path.exists(_LOCK) and not holders:
    text = f'{_LOCK} is left from a process that has ended: remove it'
    yield Finding(BAD, 'chips', text)
  elif not holders:
    yield Finding(GOOD, 'chips', f'{len(chips)} TPU devices are free')


def holders_of(paths: Iterable[str]) -> dict[int, tuple[str, str]]:
  """Finds the other processes that have one of the files open.

  The processes of other users are found only if this process runs as root.

  Returns:
    process number -> (file, name of the process).
  """
  wanted, found = {os.path.realpath(path) for path in paths}, {}
  for folder in glob.glob('/proc/[0-9]*/fd'):
    process = int(folder.split('/')[2])
    try:
      opened = {os.readlink(f'{folder}/{n}') for n in os.listdir(folder)}
      name = pathlib.Path(f'/proc/{process}/comm').read_text().strip()
    except OSError:
      continue  # The process has ended, or it belongs to another user.
    if opened & wanted and process != os.getpid():
      found[process] = min(opened & wanted), name
  return found


def compared(
  own: dict[str, Any], guests: Mapping[int, roll_call.Guest]
) -> list[Finding]:
  """Lists the findings of all hosts, and what differs from this host."""
  found = [Finding(*finding, own['host']) for finding in own['findings']]
  for number, guest in guests.items():
    name, report = f'{guest.host} (process {number})', guest.report
    found += [Finding(*f[:3], name) for f in report.get('findings', ())]
    for kind in ('versions', 'hashes'):
      there = report.get(kind, {})
      found += [
        Finding(
          BAD,
          kind,
          f'{key} {there.get(key)}, but {here} on {own["host"]}',
          name,
        )
        for key, here in own[kind].items()
        if there.get(key) != here
      ]
    if abs(guest.clock) > _MOST_CLOCK_SECONDS:
      text = f'differs by {guest.clock:+.0f} s from {own["host"]}'
      found.append(Finding(DOUBT, 'clock', text, name))
  several = f' on {len(guests) + 1} hosts' if guests else ''
  for kind in ('versions', 'hashes'):
    if own[kind] and not any(f.check == kind for f in found):
      text = ' '.join(f'{key} {value}' for key, value in own[kind].items())
      found.append(Finding(GOOD, kind, text + several))
  if guests and not any(f.check == 'clock' for f in found):
    text = f'within {_MOST_CLOCK_SECONDS:.0f} s{several}'
    found.append(Finding(GOOD, 'clock', text))
  return found


def visit(
  request: Request,
  join: Callable[..., Mapping[int, roll_call.Guest]] | None,
) -> list[Finding]:
  """Examines this host, and the others if the program has several processes.

  Args:
    request: what to examine.
    join: `processes.initialize`, or a function like it; None to examine this
      host alone.

  Returns:
    The findings, the worst first.
  """
  stop_signals.listen()  # The calls that join and start devices can be long.
  own, guests, is_whole = examine(request), {}, True
  try:
    others = _others(processes.count(), join is not None)
    if join is not None:
      guests = join(request.patience, own)
    elif others:  # The devices of a pod start together, so alone they hang.
      is_whole = False
    if guests:
      text = f'all {len(guests) + 1} have come'
      others = [Finding(GOOD, 'hosts', text)]
  except roll_call.Missing as error:
    guests, is_whole = error.guests, False
    others = [Finding(BAD, 'hosts', str(error))]
  except ValueError as error:
    others, is_whole = [Finding(BAD, 'port', str(error))], False
  found = compared(own, guests) + others
  if is_whole and not _is_held(found):
    found.append(_devices(request.run))
  return sorted(found, key=lambda f: f.grade)


def _others(num_processes: int, joins: bool) -> list[Finding]:
  """A finding if the other hosts cannot be examined as the user may expect."""
  if joins and num_processes == 1:
    text = (
      'no other process is known: if there are more, set NUM_PROCESSES,'
      ' PROCESS_ID and JAX_COORDINATOR_ADDRESS on every host'
    )
    return [Finding(DOUBT, 'hosts', text)]
  if not joins and num_processes > 1:
    text = (
      f'this is one of {num_processes} processes, whose devices start together:'
      ' to examine them, give --hosts on every host'
    )
    return [Finding(DOUBT, 'hosts', text)]
  return []


def _is_held(found: Iterable[Finding]) -> bool:
  return any(f.check == 'chips' and f.grade == BAD for f in found)


def _devices(run: AnyRun | None) -> Finding:
  """Compares the devices of all hosts with the mesh of the run."""
  devices = jax.devices()
  text = f'{len(devices)} x {devices[0].device_kind}'
  if run is None:
    return Finding(GOOD, 'devices', text)
  try:
    sizes = run.mesh.sizes(len(devices))
    run.mesh.spanning(len(devices))
  except ValueError as error:
    return Finding(BAD, 'devices', f'{text}: {error}')
  return Finding(GOOD, 'devices', f'{text}; mesh {"x".join(map(str, sizes))}')
