"""Turns public Chinese corpora into record sources for `tasks.registry`."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

from tasks import splits
from tasks.datasets.zh_corpora import sources


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A public corpus as a source of records.

  Attributes:
    name: a key of `sources.SOURCES`.
  """

  name: str
  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def __str__(self) -> str:
    source = sources.SOURCES[self.name]
    origin = f'https://github.com/{source.repository}/tree/{source.commit}'
    return f'zh_corpora/{self.name} from {origin}, licence {source.licence}'

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """Records of a split, in the order of the source's files.

    The first call prepares the corpus in `cache_directory()`.

    Raises:
      ValueError: at once, if the split is unknown, or if the corpus is
        malformed or has changed since it was prepared; also if it is missing
        and cannot be downloaded.
    """
    if split not in self.splits:
      raise ValueError(
        f'A split must be one of {", ".join(self.splits)}, got {split!r}.'
      )
    # Imported here, since it imports TensorFlow.
    from tasks.datasets.zh_corpora import zh_corpora

    return zh_corpora.read(self.name, split, cache_directory())

  def files_of(self, split: str) -> list[str]:
    """All prepared files, since any may have records of the split."""
    del split
    return list(sources.SOURCES[self.name].files.values())


def cache_directory() -> pathlib.Path:
  """Folder of prepared corpora: $WUDAO_CACHE/tfds or ~/.cache/wudao/tfds."""
  default = pathlib.Path.home() / '.cache' / 'wudao'
  return pathlib.Path(os.environ.get('WUDAO_CACHE', default)) / 'tfds'
