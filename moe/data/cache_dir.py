"""The directory for token stores, compiled programs and mirrors of buckets."""

import hashlib
import os


def default_cache_dir() -> str:
  """The default directory for files that a command can make again."""
  default = os.path.join('~', '.cache', 'wudao')
  return os.path.expanduser(os.environ.get('WUDAO_CACHE') or default)


def mirror(url: str, folder: str = 'runs') -> str:
  """The directory of this machine that mirrors a work directory in a bucket.

  Args:
    url: URL of the work directory.
    folder: 'runs' if a run writes there, 'read' if a command only reads.
  """
  url = url.rstrip('/')
  digest = hashlib.sha256(url.encode()).hexdigest()[:12]
  name = f'{url.rpartition("/")[2]}-{digest}'
  return os.path.join(default_cache_dir(), folder, name)
