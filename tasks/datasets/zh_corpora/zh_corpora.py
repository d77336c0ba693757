"""Public Chinese corpora as a TFDS dataset; each corpus is a config.

The tasks of this project read it through `Corpus`; after an import of this
module `tfds.load('zh_corpora/poems_shi')` works too. Prepared files under
$WUDAO_DATA come first, so that everybody who has them has the same splits.
Without them the repository is downloaded at its commit.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from tasks import splits, text_files
from tasks.datasets.zh_corpora import sources

_BATCH = 256
_TIMEOUT = 10  # Seconds until a silent server counts as no network.


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """One corpus."""

  source: sources.Source | None = None


class ZhCorpora(tfds.core.GeneratorBasedBuilder):
  """Chinese poems, prose, laws, dialogues and translations."""

  VERSION = tfds.core.Version('1.0.0')
  # TFDS would find the path with importlib_resources, which may be missing.
  code_path = tfds.core.Path(__file__)
  BUILDER_CONFIGS = [
    Config(name=name, description=source.description, source=source)
    for name, source in sources.SOURCES.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    source = self.builder_config.source
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{source.description} Licence: {source.licence}.',
      features=_features(source.fields),
      homepage=f'https://github.com/{source.repository}/tree/{source.commit}',
      license=source.licence,
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    source = self.builder_config.source
    if fingerprint := _fingerprint(source):
      self.info.metadata.update(fingerprint)
      records = {name: source.prepared(name) for name in splits.NAMES}
    else:
      archive = _download(self.builder_config.name, source, dl_manager)
      records = {
        name: source.downloaded(name, _members(dl_manager, archive))
        for name in splits.NAMES
      }
    return {name: enumerate(records[name]) for name in splits.NAMES}

  def _generate_examples(self):
    raise AssertionError('_split_generators gives the examples')


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A public corpus as a source of records for `tasks.registry`.

  Attributes:
    name: in `sources.SOURCES`.
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
      ValueError: at once if the split is unknown, or if the corpus is neither
        there nor downloadable, is malformed, or has changed since it was
        prepared.
    """
    if split not in self.splits:
      raise ValueError(
        f'A split must be one of {", ".join(self.splits)}, got {split!r}.'
      )
    builder = ZhCorpora(config=self.name, data_dir=cache_directory())
    tfds.disable_progress_bar()
    # TFDS prints, and stdout belongs to the caller.
    with contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare()
    source = sources.SOURCES[self.name]
    fingerprint = _fingerprint(source)
    if fingerprint and builder.info.metadata != fingerprint:
      raise ValueError(
        f'The corpus {self.name} must be the one prepared in'
        f' {builder.data_path}, but its files in {text_files.data_directory()}'
        ' have changed: delete that folder to prepare it again.'
      )
    # TensorFlow takes as long for one example as for a batch.
    batches = builder.as_dataset(split=split).ragged_batch(_BATCH)
    return itertools.chain.from_iterable(
      _rows(batch, source.fields) for batch in batches
    )

  def files_of(self, split: str) -> list[str]:
    """Names of all prepared files, for `tasks.origin`; any may hold a split."""
    del split
    return list(sources.SOURCES[self.name].files.values())


def cache_directory() -> pathlib.Path:
  """Where corpora are prepared: $WUDAO_CACHE/tfds or ~/.cache/wudao/tfds."""
  default = pathlib.Path.home() / '.cache' / 'wudao'
  return pathlib.Path(os.environ.get('WUDAO_CACHE', default)) / 'tfds'


def _fingerprint(source: sources.Source) -> dict[str, str]:
  """SHA-256 of the prepared files by name; empty if one is missing."""
  paths = {
    name: text_files.data_directory() / name for name in source.files.values()
  }
  if not all(path.is_file() for path in paths.values()):
    return {}
  return {
    name: hashlib.sha256(path.read_bytes()).hexdigest()
    for name, path in paths.items()
  }


def _download(
  name: str,
  source: sources.Source,
  dl_manager: tfds.download.DownloadManager,
) -> Any:
  """Downloads the archive of a corpus and gives its path."""
  wanted = ', '.join(
    str(text_files.data_directory() / path) for path in source.files.values()
  )
  if source.parse is None:
    raise ValueError(
      f'The corpus {name} must be there as a prepared file, got no {wanted}:'
      ' put it there or set $WUDAO_DATA; it cannot be made from'
      f' https://github.com/{source.repository} by rule.'
    )
  import requests  # TFDS downloads with it; only a download needs it.

  try:
    # Without a network TFDS would try for minutes.
    requests.head(source.url, timeout=_TIMEOUT).raise_for_status()
    return dl_manager.download(source.url)
  except OSError as error:  # The errors of requests are OSErrors.
    raise ValueError(
      f'The corpus {name} must be there as {wanted} or be downloadable from'
      f' {source.url}, got {type(error).__name__}: set $WUDAO_DATA to the'
      ' prepared files, or try where there is a network.'
    ) from error


def _members(
  dl_manager: tfds.download.DownloadManager, archive: Any
) -> Iterator[tuple[str, bytes]]:
  for path, f in dl_manager.iter_archive(archive):
    yield path, f.read()


def _features(fields: text_files.Fields):
  """TFDS features of records with these fields."""
  if fields is str:
    return tfds.features.Text()
  if isinstance(fields, list):
    return tfds.features.Sequence(_features(fields[0]))
  return tfds.features.FeaturesDict(
    {name: _features(part) for name, part in fields.items()}
  )


def _rows(column: Any, fields: text_files.Fields) -> list[Any]:
  """The values of a batch from what TFDS makes of them."""
  if isinstance(fields, dict):
    columns = [_rows(column[name], part) for name, part in fields.items()]
    return _transposed(fields, columns)
  if isinstance(fields, list) and isinstance(fields[0], dict):
    # TFDS turns a list of dicts inside out.
    columns = [_rows(column[name], [part]) for name, part in fields[0].items()]
    lists = zip(*columns, strict=True)
    return [_transposed(fields[0], values) for values in lists]
  is_ragged = hasattr(column, 'to_list')
  return _decoded(column.to_list() if is_ragged else column.numpy().tolist())


def _transposed(
  names: Iterable[str], columns: Iterable[list[Any]]
) -> list[dict[str, Any]]:
  return [
    dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
  ]


def _decoded(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode('utf-8')
  return [_decoded(item) for item in value]
