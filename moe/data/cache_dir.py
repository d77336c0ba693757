"""The directory for token stores and compiled programs."""

import os


def default_cache_dir() -> str:
  """The default directory for everything that can be made again."""
  default = os.path.join('~', '.cache', 'wudao')
  return os.path.expanduser(os.environ.get('WUDAO_CACHE') or default)
