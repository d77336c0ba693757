"""Where token stores and compiled programs are kept."""

import os


def default_cache_dir() -> str:
  """The directory of all that can be made again, unless somebody names one."""
  default = os.path.join('~', '.cache', 'wudao')
  return os.path.expanduser(os.environ.get('WUDAO_CACHE') or default)
