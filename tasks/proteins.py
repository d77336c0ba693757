"""Makes stores of protein chains from data files or from a user's folder.

A store lies in <cache_dir>/proteins/<name>_<longest>/<split>. Each record holds
the arrays of one centred chain; see `moe.modalities.protein.record_of`. Unfit
chains are left out, and so are files that cannot be read or have no chain.
`quarantine.json` lists them with the reason, and the manifest counts them. The
manifest of a held-out split has the highest identity of one of its chains with
a training chain.
"""

import collections
import functools
import glob
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from moe.data.chains import all_chains
from moe.data.store import Record, Store
from moe.modalities import protein, similarity, structure_files
from moe.modalities.protein import Chain
from tasks import origin, source_stores, splits, text_files

_logger = logging.getLogger(__name__)

_FILE_OF = {'train': 'train', 'validation': 'valid'}
# Why a file is left out.
_NO_CHAIN, _UNREADABLE = 'no protein chain in the file', 'an unreadable file'


class ChainSource(Protocol):
  """A source of protein chains."""

  splits: Sequence[str]

  def chains(self, split: str) -> Iterator[Chain]:
    """The chains of a split."""

  def unreadable(self, split: str) -> list[dict[str, str]]:
    """The 'file' and 'error' of each file of a split without a chain."""

  def files_of(self, split: str) -> list[str]:
    """The files that a split depends on, for `tasks.origin`."""


class Chains:
  """Backbones from `protein/chains_*.npz`, a file for each split."""

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

  def unreadable(self, split: str) -> list[dict[str, str]]:
    """Always [], since an unreadable file is an error here."""
    del split
    return []

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    return [f'protein/chains_{_FILE_OF[split]}.npz']


class _File(NamedTuple):
  """A file of a user's folder; `error` is '' if it has chains."""

  name: str
  chains: list[Chain]
  error: str


class Folder:
  """A user's folder of structure files: mmCIF, BinaryCIF or PDB.

  Files with similar chains share a split, see `splits_of`.

  Attributes:
    directory: the folder.
  """

  splits: ClassVar[tuple[str, ...]] = splits.NAMES

  def __init__(self, directory: str):
    self.directory = pathlib.Path(directory).expanduser().absolute()

  def chains(self, split: str) -> Iterator[Chain]:
    """The chains of a split, file by file.

    Raises:
      ValueError: if there is no structure in the folder.
    """
    for file in self._of(split):
      yield from file.chains

  def unreadable(self, split: str) -> list[dict[str, str]]:
    """The 'file' and 'error' of each file of a split without a chain."""
    return [
      {'file': file.name, 'error': file.error}
      for file in self._of(split)
      if file.error
    ]

  def files_of(self, split: str) -> list[str]:
    """A pattern for all files, since a new one may change others' splits."""
    del split
    return [os.path.join(glob.escape(str(self.directory)), '*')]

  def all_chains(self) -> list[Chain]:
    """The chains of all files.

    Raises:
      ValueError: if there is no structure in the folder.
    """
    return [chain for file in self._files for chain in file.chains]

  def _of(self, split: str) -> list[_File]:
    pairs = zip(self._files, self._splits, strict=True)
    return [file for file, its_split in pairs if its_split == split]

  @functools.cached_property
  def _files(self) -> list[_File]:
    """All files, read once."""
    if not self._paths():
      raise ValueError(
        f'{self.directory} must hold structures, whose names end in'
        f' {", ".join(structure_files.ENDINGS)} or that and .gz, got none.'
      )
    found = []
    for path in self._paths():
      try:
        chains = structure_files.read(path)
        found.append(_File(path.name, chains, '' if chains else _NO_CHAIN))
      except ValueError as error:
        found.append(_File(path.name, [], str(error)))
        _logger.info(f'warning: {error}')
    return found

  @functools.cached_property
  def _splits(self) -> list[str]:
    return splits_of([
      (file.name, [chain.sequence for chain in file.chains])
      for file in self._files
    ])  # fmt: skip

  def _paths(self) -> list[pathlib.Path]:
    (pattern,) = self.files_of('train')
    found = map(pathlib.Path, sorted(glob.glob(pattern)))
    return [path for path in found if structure_files.is_structure(path)]


def splits_of(files: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
  """The split of each file; files with similar chains are in the same split.

  Similar files make a cluster: each is similar to another one in the cluster.
  The name of the first file in a cluster decides the split. If this holds out
  all chains of a small folder, all are in 'train' instead. Files without chains
  are in 'train', since its store is always made and lists them.

  Args:
    files: (name, sequences of the chains) of each file.
  """
  owners = [number for number, (_, own) in enumerate(files) for _ in own]
  sequences = [sequence for _, own in files for sequence in own]
  firsts = list(range(len(files)))

  def first(number: int) -> int:
    while firsts[number] != number:
      number = firsts[number]
    return number

  for one, two in similarity.likely(sequences):
    low, high = sorted((first(owners[one]), first(owners[two])))
    if low == high:
      continue
    share = similarity.identity(sequences[one], sequences[two])
    if share >= similarity.SIMILAR:
      firsts[high] = low
  chosen = {n: splits.by_hash(files[first(n)][0]) for n in owners}
  if 'train' not in chosen.values():
    return ['train'] * len(files)
  return [chosen.get(number, 'train') for number in range(len(files))]


def all_of(directory: str) -> list[Chain]:
  """The chains of all files of a folder, centred.

  Raises:
    ValueError: if there is no structure in the folder.
  """
  return [protein.centred(chain) for chain in Folder(directory).all_chains()]


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
  left_out, reasons, sequences = [], collections.Counter(), []

  def records() -> Iterator[Record]:
    for chain in source.chains(split):
      reason = protein.why_unfit(chain, longest=longest)
      if reason:
        left_out.append({'chain': chain.name, 'error': reason})
        reasons[reason] += 1
      else:
        sequences.append(chain.sequence)
        yield protein.record_of(protein.centred(chain))

  made = list(records())
  without = source.unreadable(split)
  for one in without:
    is_empty = one['error'] == _NO_CHAIN
    reasons[_NO_CHAIN if is_empty else _UNREADABLE] += 1
  # In a small folder, perhaps no file is held out. Then no store is made for
  # the split.
  if not made and split != 'train':
    shutil.rmtree(directory, ignore_errors=True)
    return
  # The manifest of another split also depends on the training chains, since it
  # has the highest identity with one of them.
  parts = dict.fromkeys(('train', split))
  files = [file for part in parts for file in source.files_of(part)]
  files += origin.code(__name__)
  manifest = {
    'task': name,
    'split': split,
    'origin': origin.record(files),
    'left_out': dict(reasons),
  }
  why = ', '.join(f'{n} with {reason}' for reason, n in reasons.items())
  said = f'{name}/{split}: {len(made):,} chains; left out: {why or "none"}'
  if split != 'train':
    training = Store(os.path.join(os.path.dirname(directory), 'train'))
    others = [chain.sequence for chain in all_chains(training)]
    highest = similarity.highest_identity(sequences, others)
    manifest['highest_identity'] = highest
    said += f'; highest identity with a training chain {highest:.1%}'
  source_stores.write(directory, made, manifest, left_out + without)
  _logger.info(said)
