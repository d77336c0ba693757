"""Stores of protein chains, made once from data files or a user's own folder.

A store lies in <cache_dir>/proteins/<name>/<split>. Its records hold the arrays
of a chain, see `moe.modalities.protein.record_of`, centred and in float32.
Chains that are unfit are counted and named in `quarantine.json`.
"""

import collections
import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import numpy as np

from moe.data.store import Record
from moe.modalities import protein, structure_files
from moe.modalities.protein import Chain
from tasks import origin, source_stores, splits, text_files

_logger = logging.getLogger(__name__)

_FILE_OF = {'train': 'train', 'validation': 'valid'}


class ChainSource(Protocol):
  """Where chains come from."""

  splits: Sequence[str]

  def chains(self, split: str) -> Iterator[Chain]:
    """The chains of a split."""

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""


class Chains:
  """The chains of `protein/chains_*.npz`: backbones, split by cluster."""

  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def chains(self, split: str) -> Iterator[Chain]:
    """Chains in the order of the file, without breaks or with.

    Raises:
      ValueError: if the file is missing.
    """
    path = text_files.data_directory() / self.files_of(split)[0]
    if not path.is_file():
      raise ValueError(
        f'The data file {path} must be there: put it there, or set $WUDAO_DATA'
        ' to the directory that has it.'
      )
    with np.load(path) as file:
      arrays = dict(file)  # Each look into the file would unpack it again.
    begins = zip(arrays['offsets'], arrays['offsets'][1:], strict=False)
    for number, (begin, end) in enumerate(begins):
      yield protein.of_backbone(
        str(arrays['name'][number]),
        str(arrays['seq'][number]),
        arrays['coords'][begin:end],
        # Some oxygens were placed by geometry, so nothing is learned of them.
        3 if arrays['o_ideal'][number] else 4,
      )

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    return [f'protein/chains_{_FILE_OF[split]}.npz']


class Folder:
  """A user's own folder of structures, mmCIF, BinaryCIF or PDB.

  The split of a file depends on its name, so chains of a file stay together.

  Attributes:
    directory: the folder.
    quarantine: {'file', 'error'} of each file that cannot be read.
  """

  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def __init__(self, directory: str):
    self.directory = pathlib.Path(directory).expanduser().absolute()
    self.quarantine = []

  def chains(self, split: str) -> Iterator[Chain]:
    """The chains of a split, file by file.

    Raises:
      ValueError: if there is no structure in the folder.
    """
    self.quarantine.clear()
    if not self._paths():
      raise ValueError(
        f'{self.directory} must hold structures, whose names end in'
        f' {", ".join(structure_files.ENDINGS)} or that and .gz, got none.'
      )
    for path in self._paths():
      if splits.by_hash(path.name) != split:
        continue
      try:
        yield from structure_files.read(path)
      except ValueError as error:
        self.quarantine.append({'file': path.name, 'error': str(error)})
        _logger.info(f'warning: {error}')

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    return [str(p) for p in self._paths() if splits.by_hash(p.name) == split]

  def _paths(self) -> list[pathlib.Path]:
    if not self.directory.is_dir():
      return []
    found = sorted(self.directory.iterdir())
    return [path for path in found if structure_files.is_structure(path)]


def all_of(directory: str) -> list[Chain]:
  """The chains of all files of a folder, centred.

  Raises:
    ValueError: if there is no structure in the folder.
  """
  source = Folder(directory)
  return [
    protein.centred(chain)
    for split in source.splits
    for chain in source.chains(split)
  ]


def source_of(name: str) -> ChainSource:
  """The source of a name: 'chains', or a folder, which has a slash in its name.

  Raises:
    ValueError: if there is no such source.
  """
  if '/' in name:
    return Folder(name)
  if name != 'chains':
    raise ValueError(
      f"CHAINS must be 'chains' or a folder such as './my_structures', got"
      f' {name!r}: change the name.'
    )
  return Chains()


def prepare(
  names: Sequence[str], longest: int, cache_dir: str | os.PathLike
) -> dict[str, dict[str, str]]:
  """Makes the stores that are missing or out of date.

  Args:
    names: of the sources, as for `source_of`.
    longest: residues that a chain may have.
    cache_dir: directory of all stores.

  Returns:
    Name -> split -> directory of the store.

  Raises:
    ValueError: if a source is unknown or its files cannot be used.
  """
  sources = {name: source_of(name) for name in names}
  base = os.path.join(cache_dir, 'proteins')
  make = functools.partial(_write, longest)
  return source_stores.prepare(sources, base, longest, make)


def _write(
  longest: int, name: str, source: ChainSource, split: str, directory: str
) -> None:
  left_out, reasons = [], collections.Counter()

  def records() -> Iterator[Record]:
    for chain in source.chains(split):
      reason = protein.why_unfit(chain, longest=longest)
      if reason:
        left_out.append({'chain': chain.name, 'error': reason})
        reasons[reason] += 1
      else:
        yield protein.record_of(protein.centred(chain))

  made = list(records())
  # A small folder may hold nothing out.
  if not made and split != 'train':
    return
  files = [*source.files_of(split), *origin.code(__name__)]
  manifest = {
    'task': name,
    'split': split,
    'origin': origin.record(files),
    'left_out': dict(reasons),
  }
  bad = left_out + getattr(source, 'quarantine', [])
  source_stores.write(directory, made, manifest, bad)
  why = ', '.join(f'{n} with {reason}' for reason, n in reasons.items())
  _logger.info(
    f'{name}/{split}: {len(made):,} chains; left out: {why or "none"}'
  )
