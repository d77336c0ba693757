"""A TFDS dataset of the public Chinese corpora; each corpus is a config.

The tasks of this project read the dataset through `corpus.Corpus`. After an
import of this module `tfds.load('zh_corpora/poems_shi')` works, too. Prepared
files under $WUDAO_DATA are read if they exist, so that everybody with these
files has the same splits. Otherwise the repository is downloaded at a fixed
commit.
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from tasks import splits, text_files
from tasks.datasets.zh_corpora import sources

_logger = logging.getLogger(__name__)

_BATCH = 256
_TIMEOUT = 10  # Seconds to wait for an answer from the network.


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """The TFDS config of one corpus."""

  source: sources.PublicCorpus | None = None


class ZhCorpora(tfds.core.GeneratorBasedBuilder):
  """Chinese poems, prose, laws, dialogues and translations."""

  VERSION = tfds.core.Version('1.0.0')
  # Without this path, TFDS would look for it with importlib_resources, which
  # may not be installed.
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
    if fingerprint := source.fingerprint():
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


def read(name: str, split: str, directory: pathlib.Path) -> Iterator[Any]:
  """Reads the records of a corpus; the first call prepares it in a directory.

  Raises:
    ValueError: before the first record is read, see `corpus.Corpus.records`.
  """
  builder = ZhCorpora(config=name, data_dir=directory)
  tfds.disable_progress_bar()
  if not builder.data_path.exists():
    _logger.info(f'preparing the corpus {name} in {builder.data_path}')
  # TFDS prints that it downloads files of unknown size, even if it downloads
  # none, so its output is dropped.
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()
  source = sources.SOURCES[name]
  fingerprint = source.fingerprint()
  if fingerprint and builder.info.metadata != fingerprint:
    raise ValueError(
      f'The corpus {name} must be the one that was prepared in'
      f' {builder.data_path}, but its files in {text_files.data_directory()}'
      f' have changed: delete {builder.data_path} to prepare it again.'
    )
  # TensorFlow takes as long for one example as for a batch, so we read batches.
  batches = builder.as_dataset(split=split).ragged_batch(_BATCH)
  return itertools.chain.from_iterable(
    _rows(batch, source.fields) for batch in batches
  )


def _download(
  name: str,
  source: sources.PublicCorpus,
  dl_manager: tfds.download.DownloadManager,
) -> Any:
  """Downloads the archive of a corpus and returns its path."""
  wanted = ', '.join(
    str(text_files.data_directory() / path) for path in source.files.values()
  )
  if source.parse is None:
    raise ValueError(
      f'The corpus {name} must exist as a prepared file, got no {wanted}: put'
      ' it there or set $WUDAO_DATA; no rule makes it from'
      f' https://github.com/{source.repository}.'
    )
  import requests  # Imported here, since only a download needs it.

  try:
    # This finds out whether there is a network. TFDS would retry for minutes.
    requests.head(source.url, timeout=_TIMEOUT).raise_for_status()
    return dl_manager.download(source.url)
  except OSError as error:  # requests raises subclasses of OSError.
    raise ValueError(
      f'The corpus {name} must exist as {wanted} or be downloadable from'
      f' {source.url}, got {type(error).__name__}: set $WUDAO_DATA to the'
      ' directory of prepared files, or try on a machine with a network.'
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
  """Converts a batch from the tensors of TFDS back to a list of values."""
  if isinstance(fields, dict):
    columns = [_rows(column[name], part) for name, part in fields.items()]
    return _transposed(fields, columns)
  if isinstance(fields, list) and isinstance(fields[0], dict):
    # TFDS stores a list of dicts as a dict of lists, so this reverses that.
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
