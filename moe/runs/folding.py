"""Trains a folding model on chains."""

import logging
from collections.abc import Callable, Iterator, Sequence

from moe.data.cache_dir import default_cache_dir
from moe.data.chains import ChainReader, all_chains, chain_batches
from moe.data.store import Store
from moe.modalities import protein
from moe.modalities.protein import Chain
from moe.runs import attempt, preflight
from moe.runs.folding_run import FoldingRun
from moe.train import program as program_lib
from moe.train.evaluation import HeldOut
from moe.train.program import Program
from moe.types import Batch

_logger = logging.getLogger(__name__)

# (names of sources, residues of the longest chain, cache directory) -> name ->
# split -> directory of a store.
PrepareChains = Callable[[Sequence[str], int, str], dict[str, dict[str, str]]]


def train(
  run: FoldingRun,
  workdir: str,
  config_files: dict[str, str],
  prepare_chains: PrepareChains,
  write_report: Callable[[str], object],
  compiled: str | None = None,
  begin: float | None = None,
) -> int:
  """Trains a folding model, or resumes its run.

  Args:
    run: the run.
    workdir: directory of all files of the run.
    config_files: the configuration files to write, text by file name.
    prepare_chains: makes missing stores of chains, see `PrepareChains`.
    write_report: writes the page about a work directory and returns its path.
    compiled: see `attempt.Attempt`.
    begin: see `attempt.Attempt`.

  Returns:
    The exit code: 0 at the end, 75 after a signal to stop.

  Raises:
    ValueError: if chains cannot be used, or if checkpoints do not fit.
  """
  program = run.program()

  def opened() -> attempt.Opened:
    return attempt.Opened(
      *open_chains(run, program, prepare_chains),
      preflight.run_identity(run),
      program.init,
      lambda: _logger.info(
        f'python -m launch.fold --checkpoint={workdir} --fasta=FILE --out=DIR'
        ' folds sequences'
      ),
    )

  one = attempt.Attempt(
    run.settings,
    program,
    workdir,
    config_files,
    compiled=compiled,
    begin=begin,
  )
  return attempt.train(
    one, opened, lambda: _logger.info(f'report: {write_report(workdir)}')
  )


def describe(run: FoldingRun) -> str:
  """Text about the parameters of a folding model."""
  return program_lib.parameter_table(run.program())


def stores_of(
  run: FoldingRun, prepare_chains: PrepareChains, longest: int | None = None
) -> dict[str, dict[str, str]]:
  """Makes missing stores of chains.

  Args:
    run: the run.
    prepare_chains: makes the stores.
    longest: residues of the longest chain; None for LONGEST_CHAIN of the run.

  Returns:
    Name -> split -> directory.
  """
  data = run.data
  cache_dir = data.cache_dir or default_cache_dir()
  return prepare_chains(data.names, longest or data.longest, cache_dir)


def chains_of(stores: dict[str, dict[str, str]], split: str) -> list[Chain]:
  """All chains of a split.

  Args:
    stores: the stores, from `stores_of`.
    split: name of the split.

  Raises:
    ValueError: if no source has this split.
  """
  found = [splits[split] for splits in stores.values() if split in splits]
  if not found:
    known = sorted({name for splits in stores.values() for name in splits})
    raise ValueError(
      f'The split must be one of {", ".join(known)}, got {split!r}.'
    )
  return [chain for place in found for chain in all_chains(Store(place))]


def training_chains(
  run: FoldingRun, prepare_chains: PrepareChains
) -> list[Chain]:
  """The training chains, including chains that are too long for the run.

  A machine may have the run's stores, but not the data. Then the run's own
  chains are returned.

  Args:
    run: the run.
    prepare_chains: makes the stores.
  """
  longest = max(run.data.longest, protein.LONGEST)
  if longest > run.data.longest:
    try:
      return chains_of(stores_of(run, prepare_chains, longest), 'train')
    except ValueError as error:
      _logger.info(
        'warning: the nearest chain is sought among chains of at most'
        f' {run.data.longest} residues, since longer ones cannot be read:'
        f' {error}'
      )
  return chains_of(stores_of(run, prepare_chains), 'train')


def _check_side_chains(stores: Sequence[Store], names: Sequence[str]) -> None:
  """Raises ValueError if no training chain has a side chain."""
  for store in stores:
    for number in range(store.lengths.size):
      (record,) = store.read([number])
      if protein.of_record(record).has_side_chains:
        return
  raise ValueError(
    f'ALL_ATOM_FAPE needs chains with side chains, and CHAINS={tuple(names)}'
    ' have none: set it to 0, or name other CHAINS.'
  )


def open_chains(
  run: FoldingRun, program: Program, prepare_chains: PrepareChains
) -> tuple[ChainReader, dict[str, HeldOut]]:
  """Returns (reader of training batches, held-out chains by source name)."""
  data = run.data
  dirs = stores_of(run, prepare_chains)
  rows = program.own_rows(data.batch_size)
  stores = [Store(dirs[name]['train']).hold() for name in data.names]
  if run.has_side_chains:
    _check_side_chains(stores, data.names)
  reader = ChainReader(
    stores,
    data.rates or [float(store.lengths.size) for store in stores],
    (data.batch_size, data.crop),
    run.settings.seed,
    run.ids,
    rows,
    data.hidden,
  )
  shape = data.batch_size, data.evaluation_length

  def evaluation(store: Store) -> HeldOut:
    def batches() -> Iterator[Batch]:
      return chain_batches(store, shape, run.ids, rows)

    return HeldOut(batches, program.objective.score)

  return reader, {
    name: evaluation(Store(splits['validation']).hold())
    for name, splits in dirs.items()
    if 'validation' in splits
  }
