"""Makes stores of protein chains from data files or from a user's folder.

A store lies in <cache_dir>/proteins/<name>_<longest>/<split>. Each record holds
the arrays of one centred chain; see `moe.modalities.protein.record_of`. Unfit
chains are left out. `quarantine.json` lists them, and files that cannot be
read, with the reason.
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
  """A source of protein chains."""

  splits: Sequence[str]

  def chains(self, split: str) -> Iterator[Chain]:
    """The chains of a split."""

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""


class Chains:
  """Backbones from `protein/chains_*.npz`; similar chains share a split."""

  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def chains(self, split: str) -> Iterator[Chain]:
    """Chains in the order of the file, including chains with breaks.

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
      arrays = dict(file)  # Each access to `file` decompresses an array anew.
    begins = zip(arrays['offsets'], arrays['offsets'][1:], strict=False)
    for number, (begin, end) in enumerate(begins):
      chain = protein.of_backbone(
        str(arrays['name'][number]),
        str(arrays['seq'][number]),
        arrays['coords'][begin:end],
        # 3 leaves out oxygens that were computed from the geometry instead of
        # measured. There is nothing to learn from them.
        3 if arrays['o_ideal'][number] else 4,
      )
      yield protein.numbered_by_breaks(chain)

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    return [f'protein/chains_{_FILE_OF[split]}.npz']


class Folder:
  """A user's folder of structure files: mmCIF, BinaryCIF or PDB.

  The name of a file decides its split, so all its chains are in one split. If
  this holds out all files of a small folder, all are in 'train' instead.

  Attributes:
    directory: the folder.
    quarantine: a dict with 'file' and 'error' for each unreadable file of the
      split that was read last.
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
    for path in self._paths_of(split):
      try:
        yield from structure_files.read(path)
      except ValueError as error:
        self.quarantine.append({'file': path.name, 'error': str(error)})
        _logger.info(f'warning: {error}')

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    return [str(path) for path in self._paths_of(split)]

  def _paths_of(self, split: str) -> list[pathlib.Path]:
    found = {name: [] for name in splits.NAMES}
    for path in self._paths():
      found[splits.by_hash(path.name)].append(path)
    if not found['train']:
      found = {'train': found['validation'], 'validation': []}
    return found[split]

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
  """The source with this name: 'chains', or a folder if it contains a slash.

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
    names: names of the sources, see `source_of`.
    longest: largest number of residues of a chain.
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
  # In a small folder, perhaps no file is held out. Then no store is made for
  # the split.
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
