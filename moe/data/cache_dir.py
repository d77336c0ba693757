"""The directory for token stores, compiled programs and mirrors of buckets."""

import os


def default_cache_dir() -> str:
  """The default directory for files that a command can make again."""
  default = os.path.join('~', '.cache', 'wudao')
  return os.path.expanduser(os.environ.get('WUDAO_CACHE') or default)
