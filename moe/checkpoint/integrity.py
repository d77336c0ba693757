"""Detects damaged files by their size and SHA-256, which one file records.

`seal` writes `integrity.json` into a directory just before its commit. `check`
reads every byte again and reports each difference: a flipped byte, a truncated
file or a missing file. `check` also finds damage of `integrity.json`, because
this file holds a hash of its own entries and must have exactly the format that
`seal` writes.
"""

import concurrent.futures
import errno
import hashlib
import json
import os

from etils import epath

from moe import failpoints, json_text, outages

NAME = 'integrity.json'

# Python can read and hash several files in parallel, since both release the
# interpreter lock. More threads do not make a local disk faster. On an object
# store they hide the latency.
_THREADS = 8


def on_object_store(directory: epath.PathLike) -> bool:
  """Whether a path is a URL such as gs://; no file can be renamed there."""
  return '://' in os.fspath(directory)


def seal(directory: epath.PathLike) -> None:
  """Writes `integrity.json` with an entry for every file below a directory.

  On a local disk each file and each directory is flushed with fsync, so that a
  power failure after the commit cannot lose data.

  Args:
    directory: a complete directory that is not yet visible under its final
      name.

  Raises:
    OSError: if a file cannot be read or written.
  """
  directory = epath.Path(directory)
  flush = not on_object_store(directory)
  files = _files(directory)
  files.pop(NAME, None)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    entries = pool.map(lambda path: _digest(path, flush), files.values())
    manifest = dict(zip(files, entries, strict=True))
  failpoints.reach('commit.hashed')
  (directory / NAME).write_bytes(_encode(manifest))
  if flush:
    sync(directory / NAME)
    folders = {folder for path in files.values() for folder in path.parents}
    for folder in folders - set(directory.parents):
      sync(folder)


def check(
  directory: epath.PathLike, share: tuple[int, int] = (0, 1)
) -> list[str]:
  """Lists the problems of a sealed directory, one phrase for each damaged file.

  Args:
    directory: a directory that `seal` has sealed; its name may have changed.
    share: (index, count). Only every `count`-th file, from `index` on, is
      checked, so that the processes of a run can divide the work.

  Raises:
    OSError: if a file cannot be read now, but perhaps later.
  """
  directory = epath.Path(directory)
  try:
    manifest = _decode((directory / NAME).read_bytes())
  except FileNotFoundError:
    return [f'{NAME} is missing']
  except (OSError, ValueError) as error:
    raise_if_it_may_pass(error)
    return [f'{NAME} is damaged ({error})']
  names = sorted(manifest)[share[0] :: share[1]]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda name: _compare(directory, name, manifest), names)
    return [problem for problem in found if problem]


def size(directory: epath.PathLike) -> int:
  """Bytes of all files below `directory`, read from the file system."""
  paths = _files(epath.Path(directory)).values()
  return sum(path.stat().length for path in paths)


def sync(path: epath.PathLike) -> None:
  """Flushes a local file or directory to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _files(directory: epath.Path, prefix: str = '') -> dict[str, epath.Path]:
  """Relative name -> path of every file below a directory, sorted by name."""
  found = {}
  for path in sorted(directory.iterdir(), key=lambda path: path.name):
    name = prefix + path.name
    if path.is_dir():
      found.update(_files(path, name + '/'))
    else:
      found[name] = path
  return found


def _digest(path: epath.Path, flush: bool = False) -> list:
  """[size, SHA-256 as hexadecimal text] of one file."""
  with path.open('rb') as stream:
    digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    length = stream.tell()
    if flush:
      os.fsync(stream.fileno())
  return [length, digest]


def _compare(directory: epath.Path, name: str, manifest: dict) -> str | None:
  """Says in a phrase how a file differs from its entry; None if it is sound."""
  length, digest = manifest[name]
  try:
    found_length, found_digest = _digest(directory / name)
  except FileNotFoundError:
    return f'{name} is missing'
  except (OSError, ValueError) as error:
    raise_if_it_may_pass(error)
    return f'{name} cannot be read ({error})'
  if found_length != length:
    return f'{name} has {found_length} bytes instead of {length}'
  if found_digest != digest:
    return f'{name} has changed (SHA-256 differs)'
  return None


def raise_if_it_may_pass(error: Exception) -> None:
  """Raises the error of a sound file that cannot be read at present.

  EIO is no such error, since a bad sector causes it each time.
  """
  if outages.is_outage(error) and outages.system_error(error) != errno.EIO:
    raise error


def _encode(files: dict[str, list]) -> bytes:
  digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode())
  manifest = {'files': files, 'sha256': digest.hexdigest()}
  return json.dumps(manifest, indent=1, sort_keys=True).encode() + b'\n'


def _decode(content: bytes) -> dict[str, list]:
  """Reads the entries; raises ValueError if `_encode` did not write them."""
  manifest = json_text.parse(content)
  if not isinstance(manifest, dict) or 'files' not in manifest:
    raise ValueError('it lists no files')
  if _encode(manifest['files']) != content:
    raise ValueError('it differs from what was written')
  return manifest['files']
